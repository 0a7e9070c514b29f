import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { LineDown, Refusal } from "../src/api.ts";
import { type Clock, Follower, type Line, network, type Told } from "../src/stream/follow.ts";
import type { Event, Sink, Source } from "../src/stream/source.ts";

/** Time that passes only when somebody waits for it. */
class FakeClock implements Clock {
  time = 0;
  pauses: number[] = [];
  now = (): number => this.time;
  onOffline(): void {}
  async pause(milliseconds: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    this.pauses.push(milliseconds);
    this.time += milliseconds;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const event = (id: number, data = `t${id}`): Event => ({ id, data });
const done = (id: number): Event => event(id, "[DONE]");

type Step = (after: number, sink: Sink, signal: AbortSignal) => boolean | Promise<boolean>;

class FakeSource implements Source {
  asked: number[] = [];
  polled: number[] = [];
  private readonly steps: Step[];
  private readonly onPoll: (after: number) => { events: Event[]; ended: boolean };

  constructor(steps: Step[], onPoll: FakeSource["onPoll"] = () => ({ events: [], ended: false })) {
    this.steps = steps;
    this.onPoll = onPoll;
  }

  async events(after: number, sink: Sink, signal: AbortSignal): Promise<boolean> {
    this.asked.push(after);
    const step = this.steps.shift();
    assert.ok(step, "asked more often than expected");
    return step(after, sink, signal);
  }

  async poll(after: number): Promise<{ events: Event[]; ended: boolean }> {
    this.polled.push(after);
    return this.onPoll(after);
  }
}

/** Gives these events, then closes the connection as a server does that goes away. */
const gives =
  (...events: Event[]): Step =>
  (_, sink) => {
    sink.sign();
    for (const one of events) sink.event(one);
    return true;
  };
const breaks =
  (...events: Event[]): Step =>
  (after, sink, signal) => {
    gives(...events)(after, sink, signal);
    throw new LineDown();
  };
const refuses =
  (status: number, retryAfter: number | null = null): Step =>
  () => {
    throw new Refusal(status, "no", "no", retryAfter);
  };
/** Accepts, and says nothing until it is cut. */
const silent: Step = (_, __, signal) =>
  new Promise((_resolve, reject) => {
    const cut = () => reject(new DOMException("cut", "AbortError"));
    if (signal.aborted) cut();
    signal.addEventListener("abort", cut);
  });

async function follow(source: Source, after = 0) {
  const clock = new FakeClock();
  const leaving = new AbortController();
  const taken: string[] = [];
  const lines: Line["state"][] = [];
  const told: Told = {
    event(data) {
      taken.push(data);
      return data === "[DONE]";
    },
    line: ({ state }) => lines.at(-1) === state || lines.push(state),
  };
  const ending = await new Follower(source, after, told, clock, leaving.signal).run();
  return { ending, taken, lines, clock };
}

beforeEach(() => {
  network.holdsStreams = false;
});

test("a line that never fails", async () => {
  const source = new FakeSource([gives(event(1), event(2), done(3))]);
  const { ending, taken, lines } = await follow(source);
  assert.equal(ending, "ended");
  assert.deepEqual(taken, ["t1", "t2", "[DONE]"]);
  assert.deepEqual(lines, ["opening", "open"]);
});

test("after a break it goes on behind the last event, and takes nothing twice", async () => {
  const source = new FakeSource([
    breaks(event(1), event(2)),
    breaks(),
    gives(event(2), event(3)),
    gives(event(4), done(5)),
  ]);
  const { taken, clock } = await follow(source);
  assert.deepEqual(taken, ["t1", "t2", "t3", "t4", "[DONE]"]);
  assert.deepEqual(source.asked, [0, 2, 2, 3]);
  assert.ok(clock.pauses.length >= 3, "no try without a pause before it");
});

test("a gap is not jumped: what is missing is asked for", async () => {
  const source = new FakeSource([
    (after, sink, signal) => gives(event(1), event(3))(after, sink, signal),
    gives(event(2), event(3), done(4)),
  ]);
  const { taken } = await follow(source);
  assert.deepEqual(taken, ["t1", "t2", "t3", "[DONE]"]);
  assert.deepEqual(source.asked, [0, 1]);
});

test("a page that had everything but the end is told so by 204", async () => {
  const { ending } = await follow(new FakeSource([() => false]), 7);
  assert.equal(ending, "ended");
});

for (const [status, expected] of [
  [404, "lost"],
  [410, "lost"],
  [401, "locked"],
] as const) {
  test(`${status} means ${expected}, and is not tried again`, async () => {
    const { ending, taken } = await follow(new FakeSource([breaks(event(1)), refuses(status)]));
    assert.equal(ending, expected);
    assert.deepEqual(taken, ["t1"]);
  });
}

test("a refusal that no waiting mends is thrown, 429 and 503 are waited out", async () => {
  await assert.rejects(follow(new FakeSource([refuses(403)])), Refusal);
  const source = new FakeSource([breaks(), refuses(503, 7), refuses(429), gives(done(1))]);
  const { ending, clock } = await follow(source);
  assert.equal(ending, "ended");
  assert.ok(clock.pauses.includes(7_000), "the server's own wish for a pause was not heard");
});

test("a silent line is cut and taken up again, and polls find nothing to blame it for", async () => {
  const source = new FakeSource([silent, gives(event(1), done(2))]);
  const { taken, clock } = await follow(source);
  assert.deepEqual(taken, ["t1", "[DONE]"]);
  assert.ok(clock.time > 30_000, "a slow model was taken for a dead line");
  assert.equal(network.holdsStreams, false);
});

test("a network that holds the stream is found out by a poll, and polled from then on", async () => {
  const all = [event(1), event(2), done(3)];
  const poll = (after: number) => ({ events: all.slice(after, after + 2), ended: after >= 1 });
  const source = new FakeSource([silent], poll);
  const { ending, taken, lines } = await follow(source);
  assert.equal(ending, "ended");
  assert.deepEqual(taken, ["t1", "t2", "[DONE]"]);
  assert.deepEqual(lines, ["opening", "polling"]);
  assert.equal(network.holdsStreams, true);
  assert.deepEqual(source.asked, [0]);
});

test("polls that fail wait before they are tried again", async () => {
  network.holdsStreams = true;
  let calls = 0;
  const source = new FakeSource([], () => {
    calls += 1;
    if (calls < 4) throw new LineDown();
    return { events: [event(1), done(2)], ended: true };
  });
  const { taken, clock } = await follow(source);
  assert.deepEqual(taken, ["t1", "[DONE]"]);
  assert.equal(clock.pauses.length, 3);
});
