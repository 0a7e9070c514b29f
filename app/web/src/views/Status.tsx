/** The live chain: each hop, how it is, and how the last stream check's answer came through it. */

import { useEffect, useState } from "preact/hooks";
import { callJson } from "../api.ts";

const ASK_EVERY_MS = 10_000;

interface Hop {
  name: string;
  state: "ok" | "down" | "unknown";
  detail: string;
}

interface CheckedHop {
  name: string;
  verdict: string;
  median_gap_ms: number | null;
  first_token_ms: number | null;
  /** Seconds since the question, and how many events came with that read. */
  reads: [number, number][];
}

interface Status {
  ready: boolean;
  reason?: string | null;
  hops: Hop[];
  streamcheck: { when: string | null; verdict: string; hops: CheckedHop[] } | null;
}

const SIGNS = { ok: "✓", down: "✕", unknown: "?" };
const WORDS = { ok: "works", down: "does not answer", unknown: "unknown" };

function Chain({ hops }: { hops: Hop[] }) {
  return (
    <ol class="chain">
      {hops.map(({ name, state, detail }) => (
        <li key={name} class={`hop ${state}`}>
          <span class="sign" aria-hidden="true">
            {SIGNS[state]}
          </span>
          <strong>{name}</strong> <span class="state">{WORDS[state]}</span>
          {detail && <span class="detail">{detail}</span>}
        </li>
      ))}
    </ol>
  );
}

const WIDTH = 600;
const HEIGHT = 28;

function Timeline({ reads, longest }: { reads: [number, number][]; longest: number }) {
  const most = Math.max(1, ...reads.map(([, events]) => events));
  return (
    <svg
      class="timeline"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <line x1="0" x2={WIDTH} y1={HEIGHT - 0.5} y2={HEIGHT - 0.5} class="axis" />
      {reads.map(([seconds, events], at) => {
        const x = (WIDTH * seconds) / longest;
        return (
          <line
            key={at}
            x1={x}
            x2={x}
            y1={HEIGHT}
            y2={HEIGHT * (1 - events / most) * 0.9}
            class="read"
          />
        );
      })}
    </svg>
  );
}

function Checked({ check }: { check: NonNullable<Status["streamcheck"]> }) {
  const longest = Math.max(0.001, ...check.hops.flatMap(({ reads }) => reads.map(([s]) => s)));
  const when = check.when ? new Date(check.when).toLocaleString() : "at a time unknown";
  return (
    <section aria-labelledby="checked">
      <h2 id="checked">Last stream check</h2>
      <p>
        {check.verdict} <span class="muted">({when})</span>
      </p>
      <ul class="timelines">
        {check.hops.map(({ name, verdict, median_gap_ms, first_token_ms, reads }) => (
          <li key={name}>
            <p>
              <strong>{name}</strong> <span>{verdict}</span>{" "}
              <span class="figures">
                {first_token_ms !== null && `first token ${Math.round(first_token_ms)} ms`}
                {median_gap_ms !== null && ` · a read every ${median_gap_ms.toFixed(1)} ms`}
                {` · ${reads.length} reads`}
              </span>
            </p>
            <Timeline reads={reads} longest={longest} />
          </li>
        ))}
      </ul>
      <p class="muted">
        Each stroke is one read, as tall as the events that it brought; the line is{" "}
        {longest.toFixed(1)} s long. Evenly spread strokes are a stream, a few tall ones are a hop
        that holds it back.
      </p>
    </section>
  );
}

export function StatusView() {
  const [status, setStatus] = useState<Status | null>(null);
  const [problem, setProblem] = useState("");

  useEffect(() => {
    const leaving = new AbortController();
    async function ask(): Promise<void> {
      if (document.hidden) return;
      try {
        setStatus(await callJson<Status>("/v1/status", { signal: leaving.signal }));
        setProblem("");
      } catch (error) {
        if (!leaving.signal.aborted)
          setProblem(error instanceof Error ? error.message : String(error));
      }
    }
    void ask();
    const timer = setInterval(() => void ask(), ASK_EVERY_MS);
    return () => {
      clearInterval(timer);
      leaving.abort();
    };
  }, []);

  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: the keyboard scrolls what has the focus.
    <main class="thread" id="main" tabIndex={0}>
      <div class="column status">
        <h1>Status</h1>
        {problem && <p class="problem">{problem}</p>}
        {status && (
          <>
            <p class={status.ready ? "good" : "problem"}>
              {status.ready
                ? "The service answers."
                : `Not ready: ${status.reason || "no reason given"}`}
            </p>
            <Chain hops={status.hops} />
            {status.streamcheck ? (
              <Checked check={status.streamcheck} />
            ) : (
              <p class="muted">No stream check has been run yet.</p>
            )}
          </>
        )}
        {!status && !problem && <p class="muted">Asking …</p>}
      </div>
    </main>
  );
}
