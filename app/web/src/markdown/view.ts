/**
 * One answer on the screen: finished pieces are rendered once, the live tail again and again.
 *
 * Pieces stand in sections that the browser skips while they are out of sight (`content-visibility`
 * in the style sheet), so that an answer of 100,000 tokens costs what is seen of it.
 */

import { BlockSplitter, type Definitions, definitions } from "./blocks.ts";
import { CodeBlock } from "./code.ts";
import { Outline, render } from "./render.ts";

/** A section holds this many characters of Markdown, or a piece more. */
const SECTION = 4_000;
/** Milliseconds of work before the browser gets its turn. */
const SLICE_MS = 24;
/** Characters of a stored answer that are cut up at a time. */
const SLICE_CHARACTERS = 8_000;
/** Pause between two drawings, in ms: quick enough to look alive, and seldom in a hidden tab. */
const DRAW_EVERY_MS = 50;
const DRAW_HIDDEN_MS = 500;

export class AnswerView {
  private readonly onDraw: () => void;
  private splitter = new BlockSplitter();
  private incoming = "";
  private ready: string[] = [];
  private ended = false;
  private section: HTMLElement | null = null;
  private room = 0;
  private readonly live = document.createElement("div");
  private liveCode: CodeBlock | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private pause = DRAW_EVERY_MS;
  private known: Definitions = {};
  private readonly outline = new Outline();

  /** `onDraw` is called after each drawing, when the height may have changed. */
  constructor(host: HTMLElement, onDraw: () => void = () => {}) {
    this.onDraw = onDraw;
    this.live.className = "live";
    host.replaceChildren(this.live);
  }

  /** Show a whole answer that has ended. */
  showWhole(text: string): void {
    this.known = definitions(text);
    this.push(text);
    this.end();
  }

  /** More text has come. */
  push(text: string): void {
    this.incoming += text;
    // A timer, not an animation frame: hidden tabs have none, and would fall ever further behind.
    this.timer ??= setTimeout(this.draw, document.hidden ? DRAW_HIDDEN_MS : this.pause);
  }

  /** Nothing more will come. */
  end(): void {
    this.ended = true;
    clearTimeout(this.timer);
    this.timer = setTimeout(this.draw, 0);
  }

  dispose(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  private readonly draw = (): void => {
    this.timer = undefined;
    const began = performance.now();
    let busy = false;
    while (!busy && (this.ready.length > 0 || this.incoming)) {
      if (this.ready.length === 0) {
        const some = this.incoming.slice(0, SLICE_CHARACTERS);
        this.incoming = this.incoming.slice(some.length);
        this.ready = this.splitter.push(some);
      }
      for (let piece = this.ready.shift(); piece !== undefined; piece = this.ready.shift()) {
        this.append(piece);
        busy = performance.now() - began > SLICE_MS;
        if (busy) break;
      }
      busy ||= performance.now() - began > SLICE_MS;
    }
    const more = this.ready.length > 0 || this.incoming !== "";
    if (more) {
      this.timer = setTimeout(this.draw, 0);
    } else if (this.ended) {
      for (const piece of this.splitter.end()) this.append(piece);
      this.live.remove();
    } else {
      this.drawTail();
    }
    // Never more than a quarter of the time goes into drawing.
    this.pause = Math.max(DRAW_EVERY_MS, 3 * (performance.now() - began));
    this.onDraw();
  };

  private append(piece: string): void {
    if (!this.section || this.room <= 0) {
      this.room = SECTION;
      this.section = document.createElement("div");
      this.section.className = "section";
      this.live.before(this.section);
    }
    this.room -= piece.length;
    this.section.append(render(piece, this.known, this.outline));
    this.liveCode = null;
    this.live.replaceChildren();
  }

  private drawTail(): void {
    const open = this.splitter.openCode;
    if (!open) {
      this.liveCode = null;
      this.live.replaceChildren(render(this.splitter.tail, this.known, this.outline.copy()));
      return;
    }
    if (!this.liveCode) {
      this.liveCode = new CodeBlock(open.language);
      this.live.replaceChildren(this.liveCode.figure);
    }
    // Code only grows: what is there stays, so that a long block costs no more than a short one.
    this.liveCode.append(open.code.slice(this.liveCode.length));
  }
}
