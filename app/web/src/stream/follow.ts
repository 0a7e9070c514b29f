/**
 * Follows one stream to its end over a line that may drop, stall, or hold bytes back.
 *
 *   events --closed or broken--> pause --> events
 *          --silent, while the poll has more--> polls, to the end
 *
 * Every event is taken in once and in order, whichever way it came.
 */

import { LineDown, Refusal } from "../api.ts";
import { backoff } from "./backoff.ts";
import { Cursor, type Verdict } from "./cursor.ts";
import type { Event, Source } from "./source.ts";

/** Silence on the event stream, in ms, after which the poll is asked whether there is more. */
const PROBE_AFTER_MS = 8_000;
/** What the poll had has this long, in ms, to come by the event stream as well. */
const HELD_AFTER_MS = 1_500;
/** Two heartbeats of the server and a little: a line silent for longer, in ms, is dead. */
const DEAD_AFTER_MS = 35_000;
const POLL_WAIT_SECONDS = 20;

export type Line =
  | { state: "opening" }
  | { state: "open" }
  /** Dropped; the next try is at `until` (ms, as Date.now). */
  | { state: "down"; until: number }
  /** The network holds event streams back, so the answer comes in pieces. */
  | { state: "polling" };

export type Ending = "ended" | "lost" | "locked" | "left";

export interface Told {
  /** An event's data, each once and in order; `after` is its id. Returns true for the last. */
  event(data: string, after: number): boolean;
  line(line: Line): void;
}

export interface Clock {
  now(): number;
  /** Resolves after the pause, or at once when there is reason to try earlier. */
  pause(milliseconds: number, signal: AbortSignal): Promise<void>;
  /** Calls `act` when the machine itself says that its network went away, until `signal` aborts. */
  onOffline(act: () => void, signal: AbortSignal): void;
}

/** Whether this network was seen to hold event streams: the next answer need not find out again. */
export const network = { holdsStreams: false };

export class Follower {
  private readonly source: Source;
  private readonly told: Told;
  private readonly clock: Clock;
  private readonly signal: AbortSignal;
  private readonly cursor: Cursor;
  private attempt = 0;
  private asked = 0;
  private ended = false;
  private switching = false;

  constructor(source: Source, after: number, told: Told, clock: Clock, signal: AbortSignal) {
    this.source = source;
    this.told = told;
    this.clock = clock;
    this.signal = signal;
    this.cursor = new Cursor(after);
  }

  /** Follow to the end. Returns why it ended; throws a Refusal that no further try would mend. */
  async run(): Promise<Ending> {
    while (!this.ended) {
      if (this.signal.aborted) return "left";
      let asked = this.asked;
      try {
        const whole = network.holdsStreams ? await this.byPolls() : await this.byEvents();
        if (whole || this.ended) break;
      } catch (error) {
        if (this.signal.aborted) return "left";
        if (error instanceof Refusal) {
          if (error.status === 401) return "locked";
          if (error.status === 404 || error.status === 410) return "lost";
          if (error.status < 500 && error.status !== 429) throw error;
          asked = Math.max(asked, (error.retryAfter ?? 0) * 1000);
        } else if (!(error instanceof LineDown) && !(error instanceof DOMException)) {
          throw error;
        }
      }
      if (this.ended) break;
      if (this.switching) {
        this.switching = false;
        continue;
      }
      const wait = backoff(this.attempt++, this.attempt > 1 ? asked : 0);
      this.told.line({ state: "down", until: this.clock.now() + wait });
      await this.clock.pause(wait, this.signal);
    }
    return "ended";
  }

  private take(event: Event): Verdict {
    const verdict = this.cursor.judge(event.id);
    if (verdict === "new") {
      this.attempt = 0;
      if (this.told.event(event.data, event.id)) this.ended = true;
    }
    return verdict;
  }

  /** One event stream. Returns whether the answer is whole. */
  private async byEvents(): Promise<boolean> {
    this.told.line({ state: "opening" });
    const cut = new AbortController();
    const signal = AbortSignal.any([cut.signal, this.signal]);
    let last = this.clock.now();
    const watching = new AbortController();
    this.clock.onOffline(() => cut.abort(), watching.signal);
    const watch = this.watch(() => last, cut, AbortSignal.any([watching.signal, signal]));
    try {
      const more = await this.source.events(
        this.cursor.after,
        {
          sign: () => {
            last = this.clock.now();
            this.told.line({ state: "open" });
          },
          event: (event) => {
            if (this.take(event) === "gap" || this.ended) cut.abort();
          },
          retry: (milliseconds) => {
            this.asked = milliseconds;
          },
        },
        signal,
      );
      return !more;
    } finally {
      watching.abort();
      await watch;
    }
  }

  /** Cut the event stream when it is dead, or when the poll shows that the network holds it. */
  private async watch(
    last: () => number,
    cut: AbortController,
    signal: AbortSignal,
  ): Promise<void> {
    let probed = last();
    while (!signal.aborted) {
      await this.clock.pause(500, signal);
      if (signal.aborted) return;
      const now = this.clock.now();
      if (now - last() > DEAD_AFTER_MS) return cut.abort();
      if (now - Math.max(last(), probed) < PROBE_AFTER_MS) continue;
      probed = now;
      try {
        const polled = await this.source.poll(this.cursor.after, 0, signal);
        const newest = polled.events.at(-1)?.id ?? 0;
        if (newest <= this.cursor.after) continue;
        await this.clock.pause(HELD_AFTER_MS, signal);
        if (signal.aborted || newest <= this.cursor.after) continue;
        network.holdsStreams = true;
        this.switching = true;
      } catch {
        // The line is down for both, or the stream is gone: the stream's own error says which.
      }
      if (!signal.aborted) return cut.abort();
    }
  }

  /** Long polls to the end. */
  private async byPolls(): Promise<boolean> {
    this.told.line({ state: "polling" });
    while (!this.ended) {
      const polled = await this.source.poll(this.cursor.after, POLL_WAIT_SECONDS, this.signal);
      this.attempt = 0;
      this.told.line({ state: "polling" });
      for (const event of polled.events) if (this.take(event) === "gap") return false;
      if (polled.ended && polled.events.length === 0) return true;
    }
    return true;
  }
}
