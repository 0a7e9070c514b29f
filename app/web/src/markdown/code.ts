/** A block of code: its language, a button that copies it, colours when it is finished. */

import { copy } from "../clipboard.ts";

/** Longer code, in characters, stays plain: colours would cost more than they give. */
const LONGEST_COLOURED = 30_000;
/** Code is laid out in parts of this many characters, so that a browser can skip what is not seen. */
const PART = 4_000;

function element(name: string, className: string, text = ""): HTMLElement {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

export class CodeBlock {
  readonly figure = element("figure", "code");
  /** Characters so far. */
  length = 0;
  private readonly body = element("code", "");
  private last: Text | null = null;

  constructor(language: string) {
    const name = language.replace(/[^\w+#.-]/g, "").slice(0, 24);
    const head = element("figcaption", "code-head");
    const button = element("button", "quiet", "Copy") as HTMLButtonElement;
    button.type = "button";
    button.ariaLabel = name ? `Copy this ${name} code` : "Copy this code";
    const pre = element("pre", "");
    pre.tabIndex = 0;
    pre.role = "region";
    pre.ariaLabel = name ? `Code, ${name}` : "Code";
    pre.append(this.body);
    head.append(element("span", "code-name", name), button);
    this.figure.append(head, pre);
    button.addEventListener("click", () => copy(this.body.textContent ?? "", button));
  }

  /** More code has come. */
  append(code: string): void {
    this.length += code.length;
    for (let rest = code; rest; ) {
      if (!this.last) {
        const part = element("span", "code-part");
        this.last = document.createTextNode("");
        part.append(this.last);
        this.body.append(part);
      }
      // A part ends with a line, once it is full.
      const end = rest.indexOf("\n", Math.max(0, PART - this.last.length)) + 1;
      const some = end > 0 ? rest.slice(0, end) : rest;
      this.last.appendData(some);
      rest = rest.slice(some.length);
      if (end > 0) this.last = null;
    }
  }

  /** No more will come: it may be coloured, once it is seen. */
  finish(language: string): void {
    if (language && this.length <= LONGEST_COLOURED) {
      languages.set(this.body, language.toLowerCase());
      seen?.observe(this.body);
    }
  }
}

/** Make a block of finished code. */
export function codeBlock(language: string, code: string): CodeBlock {
  const block = new CodeBlock(language);
  block.append(code);
  block.finish(language);
  return block;
}

const languages = new WeakMap<Element, string>();

/** The colours' program is fetched when the first code comes into view. */
const seen =
  typeof IntersectionObserver === "undefined"
    ? null
    : new IntersectionObserver((entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          seen?.unobserve(target);
          // A page older than the service's may not find it any more: code is readable without.
          import("./highlight.ts").then(
            ({ colour }) => colour(target, languages.get(target)),
            () => {},
          );
        }
      });
