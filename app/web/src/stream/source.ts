/** The two ways to get a stream's events: an event stream, and the long poll behind it. */

import { createParser } from "eventsource-parser";
import { call, callJson, LineDown } from "../api.ts";

export interface Event {
  id: number;
  data: string;
}

export interface Polled {
  events: Event[];
  ended: boolean;
}

export interface Sink {
  /** A sign of life: any bytes, heartbeats included. */
  sign(): void;
  event(event: Event): void;
  /** The server asks for this pause, in milliseconds, between tries. */
  retry(milliseconds: number): void;
}

export interface Source {
  /** Read until the server closes. Returns false where nothing is left to read behind `after`. */
  events(after: number, sink: Sink, signal: AbortSignal): Promise<boolean>;
  poll(after: number, waitSeconds: number, signal: AbortSignal): Promise<Polled>;
}

/** The source of a stream of the backend. Both calls throw Refusal, LineDown or an AbortError. */
export function sourceOf(id: string): Source {
  const base = `/v1/chat/streams/${encodeURIComponent(id)}`;
  return {
    async events(after, sink, signal) {
      const headers = { Accept: "text/event-stream", "Last-Event-ID": String(after) };
      const response = await call(`${base}/events?after=${after}`, { headers, signal });
      if (response.status === 204 || !response.body) return false;
      const parser = createParser({
        onEvent: ({ id: number, data }) => sink.event({ id: Number(number), data }),
        onRetry: (milliseconds) => sink.retry(milliseconds),
      });
      sink.sign();
      const decoder = new TextDecoder();
      try {
        for await (const bytes of response.body) {
          sink.sign();
          parser.feed(decoder.decode(bytes, { stream: true }));
        }
      } catch (error) {
        if (signal.aborted) throw error;
        throw new LineDown();
      }
      return true;
    },
    poll(after, waitSeconds, signal) {
      return callJson<Polled>(`${base}/poll?after=${after}&wait=${waitSeconds}`, { signal });
    },
  };
}
