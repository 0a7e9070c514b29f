import assert from "node:assert/strict";
import { test } from "node:test";
import { Cursor } from "../src/stream/cursor.ts";

test("each event is new once, in order, and a gap moves nothing", () => {
  const cursor = new Cursor(2);
  assert.deepEqual(
    [2, 1, 3, 3, 5, 4, 5].map((id) => cursor.judge(id)),
    ["seen", "seen", "new", "seen", "gap", "new", "new"],
  );
  assert.equal(cursor.after, 5);
});

test("an id that is none is a gap, never a place to go on from", () => {
  const cursor = new Cursor(0);
  assert.equal(cursor.judge(Number.NaN), "gap");
  assert.equal(cursor.after, 0);
});
