import assert from "node:assert/strict";
import { test } from "node:test";
import { Meter } from "../src/stream/meter.ts";

test("the first token is timed from the question, the pace from the first token", () => {
  let now = 1_000;
  const meter = new Meter(undefined, () => now);
  now = 1_500;
  for (let n = 0; n < 11; n++) {
    meter.token();
    now += 100;
  }
  assert.deepEqual(meter.figures(), { firstTokenMs: 500, tokens: 11, tokensPerSecond: 10 });
  meter.settle(21);
  assert.deepEqual(meter.figures(), { firstTokenMs: 500, tokens: 21, tokensPerSecond: 20 });
});

test("tokens that come in portions have no pace", () => {
  let now = 0;
  const meter = new Meter(undefined, () => now);
  meter.hold();
  for (now = 100; now < 2_000; now += 500) meter.token();
  assert.deepEqual(meter.figures(), { firstTokenMs: 100, tokens: 4, tokensPerSecond: null });
});

test("after a reload the page before counts, but not in the pace", () => {
  let now = 0;
  const before = { firstTokenMs: 120, tokens: 40, tokensPerSecond: 5 };
  const meter = new Meter(before, () => now);
  for (let n = 0; n < 3; n++) {
    now += 500;
    meter.token();
  }
  assert.deepEqual(meter.figures(), { firstTokenMs: 120, tokens: 43, tokensPerSecond: 2 });
  meter.settle(43);
  assert.equal(meter.figures().tokensPerSecond, 2);
});
