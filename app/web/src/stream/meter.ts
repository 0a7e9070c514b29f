/** Time to the first token and tokens a second, as this page saw them. */

import type { Figures } from "../store/model.ts";

export class Meter {
  private readonly asked: number;
  /** Tokens that a page before this one saw: they count, but not in the pace. */
  private readonly before: Figures | undefined;
  private first = 0;
  private last = 0;
  private events = 0;
  private settled: number | null = null;
  private held = false;
  private readonly now: () => number;

  constructor(before?: Figures, now: () => number = () => performance.now()) {
    this.before = before;
    this.now = now;
    this.asked = now();
  }

  /** Whether any token came. */
  get seen(): boolean {
    return this.events > 0;
  }

  /** An event with text came: a token, or several when a reader lagged behind. */
  token(): void {
    this.last = this.now();
    if (this.events === 0) this.first = this.last;
    this.events += 1;
  }

  /** The network gives tokens in portions: when they come no longer says how fast they are made. */
  hold(): void {
    this.held = true;
  }

  /** The engine's own count has come. */
  settle(tokens: number): void {
    this.settled = tokens;
  }

  figures(): Figures {
    const seconds = (this.last - this.first) / 1000;
    const here = this.settled !== null && !this.before ? this.settled : this.events;
    const firstHere = this.seen ? Math.round(this.first - this.asked) : null;
    return {
      firstTokenMs: this.before ? this.before.firstTokenMs : firstHere,
      tokens: this.settled ?? (this.before?.tokens ?? 0) + this.events,
      tokensPerSecond: !this.held && here > 1 && seconds > 0.05 ? (here - 1) / seconds : null,
    };
  }
}
