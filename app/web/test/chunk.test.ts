import assert from "node:assert/strict";
import { test } from "node:test";
import { readChunk } from "../src/stream/chunk.ts";

test("a chunk's text, reasoning, usage and end are read", () => {
  const chunk = readChunk('{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}');
  assert.deepEqual([chunk.text, chunk.end, chunk.error], ["Hi", false, null]);
  assert.equal(readChunk('{"choices":[{"delta":{"reasoning_content":"hm"}}]}').reasoning, "hm");
  assert.equal(readChunk('{"choices":[{"delta":{"reasoning":"hm"}}]}').reasoning, "hm");
  assert.equal(readChunk('{"choices":[{"delta":{},"finish_reason":"length"}]}').finish, "length");
  const usage = readChunk('{"choices":[],"usage":{"completion_tokens":9}}').usage;
  assert.equal(usage?.completion_tokens, 9);
  assert.equal(readChunk("[DONE]").end, true);
});

test("an error and what is unreadable are told to people", () => {
  assert.equal(readChunk('{"error":{"message":"The engine died."}}').error, "The engine died.");
  assert.match(readChunk("{").error ?? "", /unreadable/);
});
