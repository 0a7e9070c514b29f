import assert from "node:assert/strict";
import { test } from "node:test";
import { backoff } from "../src/stream/backoff.ts";

test("waits grow, up to a bound, and are never none", () => {
  const longest = [0, 1, 2, 3, 10, 1000].map((attempt) => backoff(attempt, 0, () => 1));
  assert.deepEqual(longest, [300, 600, 1200, 2400, 15_000, 15_000]);
  assert.equal(
    backoff(0, 0, () => 0),
    150,
  );
});

test("pages that were cut off together do not come back together", () => {
  const waits = new Set(Array.from({ length: 50 }, () => backoff(6)));
  assert.ok(waits.size > 25);
});

test("what the server asks for is the least", () => {
  assert.equal(backoff(0, 20_000), 20_000);
});
