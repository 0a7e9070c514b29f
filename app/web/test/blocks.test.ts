import assert from "node:assert/strict";
import { test } from "node:test";
import { marked } from "marked";
import { BlockSplitter, definitions } from "../src/markdown/blocks.ts";

const TEXT = `# Title
Intro with *words*
that go on.
---

- one
- two

  still two

      code in two
- three

After the list.

\`\`\`\`js
const a = \`\`\`;
\`\`\`
not the end
\`\`\`\`
> quote
lazy

| a | b |
| - | - |
| 1 | 2 |

~~~
tilde
~~~

1. first
   \`\`\`sh
   echo hi

   echo there
   \`\`\`
2. second

<div>
html
</div>

Last words`;

/** Feed a text in pieces of a size; return what was finished, in order. */
function split(text: string, size: number): string[] {
  const splitter = new BlockSplitter();
  const pieces: string[] = [];
  for (let at = 0; at < text.length; at += size) {
    pieces.push(...splitter.push(text.slice(at, at + size)));
  }
  // Empty lines between two blocks belong to neither.
  return [...pieces, ...splitter.end()].map((piece) => piece.trimEnd());
}

test("wherever the text is cut, the same pieces come out, and mean what the whole means", () => {
  const whole = split(TEXT, TEXT.length);
  for (const size of [1, 2, 3, 7, 50]) assert.deepEqual(split(TEXT, size), whole);
  assert.ok(whole.length > 8);
  const html = whole.map((piece) => marked.parse(`${piece}\n`, { async: false })).join("");
  assert.equal(html, marked.parse(TEXT, { async: false }));
});

test("no character is lost or doubled", () => {
  const squeeze = (text: string) => text.replace(/\s+/g, "");
  assert.equal(squeeze(split(TEXT, 5).join("")), squeeze(TEXT));
});

test("what is finished stays finished: only the tail may change", () => {
  const splitter = new BlockSplitter();
  assert.deepEqual(splitter.push("Some words\n"), []);
  assert.deepEqual(splitter.push("-"), []);
  assert.deepEqual(splitter.push("--\n"), ["Some words\n---\n"]);
  assert.equal(splitter.tail, "");
});

test("code that is being written is told as such, from its first line on", () => {
  const splitter = new BlockSplitter();
  splitter.push("```python title\nx = 1\ny");
  assert.deepEqual(splitter.openCode, { language: "python", code: "x = 1\ny" });
  assert.deepEqual(splitter.push(" = 2\n```\n"), ["```python title\nx = 1\ny = 2\n```\n"]);
  assert.equal(splitter.openCode, null);
});

const ENDLESS: Record<string, (n: number) => string> = {
  list: (n) => `${n + 1}. item ${n}\n`,
  table: (n) => (n ? `| ${n} | x |\n` : "| a | b |\n|---|---|\n"),
  lines: (n) => `line ${n} of a paragraph\n`,
  quote: (n) => `> quoted ${n}\n`,
  words: (n) => `word${n} `,
};

for (const [kind, make] of Object.entries(ENDLESS)) {
  test(`${kind} without end: the tail stays short, and the whole comes out`, () => {
    const splitter = new BlockSplitter();
    const pieces: string[] = [];
    let [text, longest] = ["", 0];
    for (let n = 0; text.length < 100_000; n++) {
      text += make(n);
      pieces.push(...splitter.push(make(n)));
      longest = Math.max(longest, splitter.tail.length);
    }
    pieces.push(...splitter.end());
    assert.ok(longest < 10_000, `the tail grew to ${longest} characters`);
    // A table's head stands above each of its parts.
    const rows = pieces.map((piece, at) =>
      kind === "table" && at > 0 ? piece.split("\n").slice(2).join("\n") : piece,
    );
    assert.equal(rows.join("").trim(), text.trim());
  });
}

test("a table that comes at once is drawn in parts, each as short as one that comes slowly", () => {
  const splitter = new BlockSplitter();
  const rows = Array.from({ length: 1_000 }, (_, n) => `| ${n} | x |\n`).join("");
  const pieces = [...splitter.push(`| a | b |\n|---|---|\n${rows}`), ...splitter.end()];
  const longest = Math.max(...pieces.map((piece) => piece.length));
  assert.ok(longest < 2_000, `a part of ${longest} characters`);
  assert.ok(pieces.every((piece) => piece.startsWith("| a | b |\n|---|---|\n")));
});

test("a link's address is found wherever it stands", () => {
  const found = definitions('See [it][The  Name].\n\n[the name]: https://example.org "title"\n');
  assert.equal(found["the name"]?.href, "https://example.org");
  assert.deepEqual(definitions("no [link] here: at all"), {});
});
