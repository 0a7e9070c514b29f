/**
 * Cuts Markdown that is still arriving into finished pieces and one live tail.
 *
 * A piece is finished when nothing that may still come can change it: it is rendered once and never
 * touched again, so that the cost of an answer grows with its length and not with its square. What
 * cannot end for long (a list of hundreds of items, a table, a wall of text) is cut at a seam when it
 * grows past LONG, for the same reason.
 */

import { Lexer, type Token, type Tokens } from "marked";

/** Characters after which an unfinished block is cut at a seam. */
const LONG = 4_000;
/** The same for a table, whose cells cost the browser several times what plain text does. */
const LONG_TABLE = 1_500;

const FENCE = /^( {0,3})(`{3,}|~{3,})([^\n]*)\n/;

export interface OpenCode {
  language: string;
  /** The code so far: all of it, without the fence. */
  code: string;
}

interface Fence {
  language: string;
  start: number;
  closing: RegExp;
  /** Where the search for the closing line goes on. */
  searched: number;
}

export class BlockSplitter {
  private rest = "";
  private fence: Fence | null = null;

  /** What is not finished yet, as Markdown. */
  get tail(): string {
    return this.rest;
  }

  /** The code block that is being written, where the tail is one. */
  get openCode(): OpenCode | null {
    return this.fence && { language: this.fence.language, code: this.rest.slice(this.fence.start) };
  }

  /** Take in more text; return the pieces that it finished, in order. */
  push(text: string): string[] {
    this.rest += text;
    const finished: string[] = [];
    // Without a line's end nothing can have been finished.
    if (!text.includes("\n") && this.rest.length < LONG) return finished;
    while (this.step(finished));
    return finished;
  }

  /** Nothing more will come: return what is left. */
  end(): string[] {
    const left = this.rest;
    this.rest = "";
    this.fence = null;
    return left.trim() ? [left] : [];
  }

  private cut(at: number, finished: string[], carry = ""): boolean {
    const piece = this.rest.slice(0, at);
    if (piece.trim()) finished.push(piece);
    this.rest = carry + this.rest.slice(at);
    this.fence = null;
    return at > 0;
  }

  /** Finish one piece, if one can be. Returns whether to look again. */
  private step(finished: string[]): boolean {
    this.fence ??= openFence(this.rest);
    if (this.fence) return this.stepFence(this.fence, finished);
    const whole = this.rest.lastIndexOf("\n") + 1;
    // A line counts when it has ended: `- ` may yet become `---`.
    const tokens = new Lexer().blockTokens(this.rest.slice(0, whole), []);
    const last = tokens.findLastIndex((token) => token.type !== "space");
    if (last > 0) return this.cutEach(tokens.slice(0, last), finished);
    const token = tokens[last];
    if (token?.type === "heading" || token?.type === "hr") {
      return this.cut(lengthOf(tokens), finished);
    }
    const long = token?.type === "table" ? LONG_TABLE : LONG;
    return this.rest.length > long && this.cutAtSeam(token, whole, finished);
  }

  /** Every block is a piece of its own, with the empty lines behind it. */
  private cutEach(tokens: Token[], finished: string[]): boolean {
    let length = 0;
    for (const [at, token] of tokens.entries()) {
      length += token.raw.length;
      if (tokens[at + 1]?.type === "space") continue;
      this.cut(length, finished);
      length = 0;
    }
    return true;
  }

  private stepFence(fence: Fence, finished: string[]): boolean {
    fence.closing.lastIndex = fence.searched;
    const close = fence.closing.exec(this.rest);
    if (close) return this.cut(close.index + close[0].length, finished);
    fence.searched = Math.max(fence.start, this.rest.lastIndexOf("\n"));
    return false;
  }

  private cutAtSeam(token: Token | undefined, whole: number, finished: string[]): boolean {
    if (token?.type === "list") {
      // The last item may still grow, and decide how the one before it is set.
      const items = (token as Tokens.List).items.slice(0, -2);
      const length = items.reduce((sum, item) => sum + item.raw.length, 0);
      if (length > 0 && this.rest.startsWith(items[0]?.raw ?? "\0"))
        return this.cut(length, finished);
    }
    if (token?.type === "table") {
      const head = `${this.rest.split("\n", 2).join("\n")}\n`;
      // Of much that came at once, no more than one table's worth: each piece is drawn in one go.
      const row = this.rest.indexOf("\n", Math.max(head.length, LONG_TABLE)) + 1;
      if (row > head.length) return this.cut(row, finished, head);
    }
    if (whole > LONG / 2) return this.cut(whole, finished);
    // One endless line: at a space, or else anywhere.
    if (this.rest.length < 2 * LONG) return false;
    const space = this.rest.lastIndexOf(" ", 2 * LONG);
    return this.cut(space > 0 ? space + 1 : 2 * LONG, finished);
  }
}

function lengthOf(tokens: Token[]): number {
  return tokens.reduce((sum, token) => sum + token.raw.length, 0);
}

function openFence(text: string): Fence | null {
  const found = FENCE.exec(text);
  if (!found) return null;
  const [line, , marks = "```", info = ""] = found;
  if (marks.startsWith("`") && info.includes("`")) return null;
  const mark = marks.charAt(0);
  return {
    language: info.trim().split(/\s+/, 1)[0] ?? "",
    start: line.length,
    closing: new RegExp(`^ {0,3}${mark}{${marks.length},}[ \\t]*\\n`, "gm"),
    searched: line.length,
  };
}

const DEFINITION = /^ {0,3}\[([^\]\n]+)\]:[ \t]*<?(\S+?)>?(?:[ \t]+["'(].*["')])?[ \t]*$/gm;

export type Definitions = Record<string, { href: string; title: undefined }>;

/** The link definitions (`[name]: address`) of a whole answer, which may stand behind their use. */
export function definitions(text: string): Definitions {
  const found: Definitions = {};
  for (const [, name = "", href = ""] of text.matchAll(DEFINITION)) {
    found[name.toLowerCase().replace(/\s+/g, " ")] ??= { href, title: undefined };
  }
  return found;
}
