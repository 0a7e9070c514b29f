/** Markdown to safe DOM nodes. A model's answer is foreign text: nothing in it may act or call out. */

import DOMPurify from "dompurify";
import { Lexer, Parser, Renderer, type Tokens } from "marked";
import type { Definitions } from "./blocks.ts";
import { codeBlock } from "./code.ts";

/** An answer's headings stand under the page's own (h1) and the message's (h2). */
const ABOVE = 2;

/**
 * Levels for an answer's headings. Models begin at any level and leave some out; those who find
 * their way by headings need an outline without holes.
 */
export class Outline {
  private readonly depths: number[];

  constructor(depths: number[] = []) {
    this.depths = depths;
  }

  level(depth: number): number {
    while ((this.depths.at(-1) ?? 0) >= depth) this.depths.pop();
    this.depths.push(depth);
    return Math.min(6, ABOVE + this.depths.length);
  }

  /** A copy, for what is drawn now and will be drawn again. */
  copy(): Outline {
    return new Outline([...this.depths]);
  }
}

function escapeHtml(text: string): string {
  return text.replace(
    /[&<>"']/g,
    (sign) =>
      ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[sign] ?? sign,
  );
}

class AnswerRenderer extends Renderer {
  private readonly outline: Outline;

  constructor(outline: Outline) {
    super();
    this.outline = outline;
  }

  /** HTML in an answer is shown, not obeyed. */
  override html({ text }: Tokens.HTML | Tokens.Tag): string {
    return escapeHtml(text);
  }

  /** An image would be fetched from whatever host the text names: it is a link instead. */
  override image({ href, title, text }: Tokens.Image): string {
    const label = escapeHtml(text || title || "image");
    return `<a href="${escapeHtml(href)}">${label}</a>`;
  }

  override heading({ tokens, depth }: Tokens.Heading): string {
    const level = this.outline.level(depth);
    return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
  }

  override checkbox({ checked }: Tokens.Checkbox): string {
    return checked ? "☑ " : "☐ ";
  }

  override code({ text, lang }: Tokens.Code): string {
    const language = (lang ?? "").trim().split(/\s+/, 1)[0] ?? "";
    return `<pre title="${escapeHtml(language)}">${escapeHtml(text)}\n</pre>`;
  }
}

const SAFE = {
  ALLOWED_TAGS: [
    ...["p", "br", "hr", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code"],
    ...["em", "strong", "del", "a", "table", "thead", "tbody", "tr", "th", "td"],
  ],
  ALLOWED_ATTR: ["href", "title", "align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
};

/** Render Markdown. `known` are link definitions that may stand elsewhere in the answer. */
export function render(
  markdown: string,
  known: Definitions = {},
  outline: Outline = new Outline(),
): DocumentFragment {
  const lexer = new Lexer();
  Object.assign(lexer.tokens.links, known);
  const html = new Parser({ renderer: new AnswerRenderer(outline) }).parse(lexer.lex(markdown));
  const nodes = DOMPurify.sanitize(html, SAFE);
  for (const link of nodes.querySelectorAll("a[href]")) {
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer nofollow");
  }
  for (const table of nodes.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0;
    frame.role = "region";
    frame.ariaLabel = "Table";
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const pre of nodes.querySelectorAll("pre")) {
    pre.replaceWith(codeBlock(pre.title, pre.textContent ?? "").figure);
  }
  return nodes;
}
