/** Answers that are being written: asked for, followed, stopped, and saved as they grow. */

import { type Signal, signal } from "@preact/signals";
import { announce } from "./announce.ts";
import { call, callJson, LineDown, Refusal } from "./api.ts";
import { save } from "./store/database.ts";
import {
  type Conversation,
  type Figures,
  type Message,
  type Outcome,
  parametersOf,
  promptOf,
} from "./store/model.ts";
import { readChunk } from "./stream/chunk.ts";
import { browserClock } from "./stream/clock.ts";
import { Follower, type Line } from "./stream/follow.ts";
import { Meter } from "./stream/meter.ts";
import { sourceOf } from "./stream/source.ts";

/** The text grows many times a second; it is saved this often, in ms. */
const SAVE_EVERY_MS = 800;
const FIGURES_EVERY_MS = 250;
/** After a stop, what was already written has this long, in ms, to arrive. */
const LAST_WORDS_MS = 3_000;
/** An answer that is no longer than this, in characters, is read out whole. */
const READ_OUT = 300;

export type Phase =
  | "sending"
  | "waiting"
  | "writing"
  | "resuming"
  | "down"
  | "polling"
  | "stopping"
  | "locked";

export interface Live {
  message: Message;
  phase: Signal<Phase>;
  /** When the next try is, while the line is down (ms, as Date.now). */
  until: Signal<number>;
  /** True for a moment after the line came back. */
  resumed: Signal<boolean>;
  figures: Signal<Figures>;
  /** Called with text as it comes. */
  readers: Set<(text: string, reasoning: string) => void>;
  stop: () => void;
  retryNow: () => void;
}

/** The answers being written, by message id. */
export const lives: Signal<ReadonlyMap<string, Live>> = signal(new Map());

/** Called when a conversation's messages changed in more than their growing text. */
let onChange: (conversation: Conversation) => void = () => {};

export function whenAnswersChange(act: (conversation: Conversation) => void): void {
  onChange = act;
}

function setLive(id: string, live: Live | null): void {
  const changed = new Map(lives.value);
  if (live) changed.set(id, live);
  else changed.delete(id);
  lives.value = changed;
}

class Writing implements Live {
  readonly phase = signal<Phase>("sending");
  readonly until = signal(0);
  readonly resumed = signal(false);
  readonly figures: Signal<Figures>;
  readonly readers = new Set<(text: string, reasoning: string) => void>();
  readonly message: Message;
  private readonly conversation: Conversation;
  private readonly leaving = new AbortController();
  private readonly clock = browserClock();
  private readonly meter: Meter;
  private saving: ReturnType<typeof setTimeout> | undefined;
  private measured = 0;
  private stopped = false;
  private dropped = false;
  private ending: { outcome: Outcome; problem?: string } = { outcome: "whole" };

  constructor(conversation: Conversation, message: Message) {
    this.conversation = conversation;
    this.message = message;
    this.meter = new Meter(message.figures);
    this.figures = signal(this.meter.figures());
  }

  /** Ask, and follow the answer to its end. */
  async ask(): Promise<void> {
    const { conversation, message } = this;
    this.enter();
    try {
      const { id } = await callJson<{ id: string }>("/v1/chat/streams", {
        method: "POST",
        body: {
          model: message.model,
          messages: promptOf(conversation),
          stream_options: { include_usage: true },
          ...parametersOf(conversation),
        },
        signal: this.leaving.signal,
      });
      message.stream = { id, after: 0 };
      this.phase.value = "waiting";
      this.saveSoon(0);
    } catch (error) {
      if (error instanceof Refusal && error.status === 401) {
        return this.finish("error", "You were logged out before the question was sent.");
      }
      return this.stopped ? this.finish("stopped") : this.finish("error", reasonOf(error));
    }
    await this.follow();
  }

  /** Go on with an answer that a page before this one was reading. */
  async resume(): Promise<void> {
    this.enter();
    this.phase.value = "resuming";
    await this.follow();
  }

  readonly stop = (): void => {
    if (this.stopped) return;
    this.stopped = true;
    this.phase.value = "stopping";
    const { stream } = this.message;
    if (!stream) {
      this.leaving.abort();
      return;
    }
    // Whether or not the call gets through: a stream that nobody reads ends by itself.
    call(`/v1/chat/streams/${encodeURIComponent(stream.id)}/stop`, { method: "POST" }).catch(() =>
      this.leaving.abort(),
    );
    setTimeout(() => this.leaving.abort(), LAST_WORDS_MS);
  };

  readonly retryNow = (): void => this.clock.wake();

  private enter(): void {
    setLive(this.message.id, this);
    onChange(this.conversation);
    announce("Waiting for the answer.");
  }

  private async follow(): Promise<void> {
    const { stream } = this.message;
    if (!stream) return;
    const told = { event: this.event, line: this.line };
    const { signal } = this.leaving;
    const follower = new Follower(sourceOf(stream.id), stream.after, told, this.clock, signal);
    try {
      const ending = await follower.run();
      if (ending === "locked") return this.lock();
      if (this.stopped) return this.finish("stopped");
      if (ending === "lost") {
        return this.finish("lost", "The rest of this answer is no longer kept by the service.");
      }
      this.finish(this.ending.outcome, this.ending.problem);
    } catch (error) {
      this.finish("error", reasonOf(error));
    }
  }

  private readonly event = (data: string, after: number): boolean => {
    const chunk = readChunk(data);
    const { message } = this;
    if (message.stream) message.stream.after = after;
    if (chunk.error) this.ending = { outcome: "error", problem: chunk.error };
    if (chunk.finish === "length") this.ending = { outcome: "length" };
    if (chunk.text || chunk.reasoning) {
      message.text += chunk.text;
      if (chunk.reasoning) message.reasoning = (message.reasoning ?? "") + chunk.reasoning;
      for (const reader of this.readers) reader(chunk.text, chunk.reasoning);
      this.meter.token();
      this.flowing();
    }
    if (chunk.usage?.completion_tokens) this.meter.settle(chunk.usage.completion_tokens);
    const now = performance.now();
    if (now - this.measured > FIGURES_EVERY_MS) {
      this.measured = now;
      this.figures.value = this.meter.figures();
    }
    this.saveSoon(SAVE_EVERY_MS);
    return chunk.end;
  };

  private flowing(): void {
    const { phase } = this;
    if (phase.value === "waiting" || phase.value === "resuming") phase.value = "writing";
  }

  private readonly line = (line: Line): void => {
    if (this.stopped) return;
    const { phase } = this;
    if (line.state === "down") {
      if (phase.value !== "down") announce("The connection dropped. Trying to take it up again.");
      this.dropped = true;
      this.until.value = line.until;
      phase.value = "down";
    } else if (line.state === "polling") {
      phase.value = "polling";
      this.meter.hold();
      this.welcomeBack();
    } else if (line.state === "open") {
      if (phase.value === "down" || phase.value === "polling") {
        phase.value = this.message.text ? "writing" : "waiting";
      }
      this.welcomeBack();
    }
  };

  private welcomeBack(): void {
    if (!this.dropped) return;
    this.dropped = false;
    this.resumed.value = true;
    announce("The connection is back.");
    setTimeout(() => {
      this.resumed.value = false;
    }, 4_000);
  }

  /** Logged out in mid-answer: it can go on after the next log-in. */
  private lock(): void {
    this.phase.value = "locked";
    this.saveSoon(0);
    setLive(this.message.id, null);
    onChange(this.conversation);
  }

  private finish(outcome: Outcome, problem?: string): void {
    const { message } = this;
    delete message.stream;
    message.outcome = outcome;
    if (problem) message.problem = problem;
    this.conversation.updated = Date.now();
    this.saveSoon(0);
    setLive(message.id, null);
    onChange(this.conversation);
    announce(spoken(message));
  }

  private saveSoon(milliseconds: number): void {
    if (milliseconds === 0) {
      clearTimeout(this.saving);
      this.saving = undefined;
      if (this.meter.seen) this.message.figures = this.meter.figures();
      void save(this.conversation);
      return;
    }
    this.saving ??= setTimeout(() => this.saveSoon(0), milliseconds);
  }
}

function reasonOf(error: unknown): string {
  if (error instanceof LineDown) return "The service cannot be reached. Is the network there?";
  if (error instanceof Refusal && error.retryAfter) {
    return `${error.message} Try again in ${Math.ceil(error.retryAfter)} s.`;
  }
  return error instanceof Error ? error.message : String(error);
}

function spoken({ outcome, problem, text }: Message): string {
  if (outcome === "stopped") return "Stopped.";
  if (problem) return problem;
  return text.length <= READ_OUT ? `Answer: ${text}` : "The answer is complete.";
}

/** Have the last question of a conversation answered. */
export function answer(conversation: Conversation): void {
  const message: Message = {
    id: crypto.randomUUID(),
    role: "assistant",
    text: "",
    model: conversation.model,
  };
  conversation.messages.push(message);
  conversation.updated = Date.now();
  void new Writing(conversation, message).ask();
}

/** Go on with what was being written when a page was left, or the log-in ran out. */
export function resume(conversation: Conversation): void {
  for (const message of conversation.messages) {
    if (message.stream && !lives.value.has(message.id)) {
      void new Writing(conversation, message).resume();
    }
  }
}

/** The answer of a conversation that is being written, if one is. */
export function liveOf(conversation: Conversation | null): Live | undefined {
  const last = conversation?.messages.at(-1);
  return last && lives.value.get(last.id);
}
