/** An answer: its text as it comes, what state the line is in, and what can be done with it. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { type Live, lives } from "../answers.ts";
import { copy } from "../clipboard.ts";
import { retry } from "../desk.ts";
import { definitions } from "../markdown/blocks.ts";
import { AnswerView } from "../markdown/view.ts";
import type { Figures, Message } from "../store/model.ts";

interface Shown {
  view: AnswerView;
  /** Characters of a text that is whole; null while it grows. */
  whole: number | null;
}

interface TextProps {
  message: Message;
  live: Live | undefined;
  onDraw: () => void;
}

/** The text itself. Preact makes the box; the view fills it, so that no token costs a comparison. */
function Text({ message, live, onDraw }: TextProps) {
  const box = useRef<HTMLDivElement>(null);
  const shown = useRef<Shown | null>(null);
  const length = live ? null : message.text.length;

  useLayoutEffect(() => {
    if (!box.current) return;
    const before = shown.current;
    if (before && before.whole === length && length !== null) return;
    // A link's address may come at the very end: then the answer is drawn once more.
    const goesOn = !live && before?.whole === null && !hasDefinitions(message.text);
    if (goesOn && before) {
      before.view.end();
      before.whole = length;
      return;
    }
    before?.view.dispose();
    const view = new AnswerView(box.current, onDraw);
    shown.current = { view, whole: length };
    if (!live) {
      view.showWhole(message.text);
      return;
    }
    view.push(message.text);
    const read = (text: string): void => view.push(text);
    live.readers.add(read);
    return () => {
      live.readers.delete(read);
    };
  }, [live, length]);

  useEffect(() => () => shown.current?.view.dispose(), []);

  return <div class="prose" ref={box} />;
}

function hasDefinitions(text: string): boolean {
  return Object.keys(definitions(text)).length > 0;
}

function Reasoning({ message, live }: { message: Message; live: Live | undefined }) {
  const [text, setText] = useState(message.reasoning ?? "");
  useEffect(() => {
    setText(message.reasoning ?? "");
    if (!live) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = (_: string, more: string): void => {
      if (!more) return;
      timer ??= setTimeout(() => {
        timer = undefined;
        setText(message.reasoning ?? "");
      }, 250);
    };
    live.readers.add(read);
    return () => {
      clearTimeout(timer);
      live.readers.delete(read);
    };
  }, [message.id, live]);
  if (!text) return null;
  return (
    <details class="reasoning">
      <summary>{live && !message.text ? "Thinking …" : "What it thought"}</summary>
      <p>{text}</p>
    </details>
  );
}

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 0)} s`;
}

function FiguresLine({ figures }: { figures: Figures }) {
  const parts: string[] = [];
  if (figures.firstTokenMs !== null) parts.push(`first token ${seconds(figures.firstTokenMs)}`);
  if (figures.tokensPerSecond !== null) {
    const pace = figures.tokensPerSecond;
    parts.push(`${pace.toFixed(pace < 10 ? 1 : 0)} tokens/s`);
  }
  if (figures.tokens > 0) parts.push(`${figures.tokens.toLocaleString("en")} tokens`);
  return <span class="figures">{parts.join(" · ")}</span>;
}

function Countdown({ live }: { live: Live }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 500);
    return () => clearInterval(timer);
  }, []);
  const left = Math.ceil((live.until.value - Date.now()) / 1000);
  return <>{left > 0 ? ` Next try in ${left} s.` : " Trying …"}</>;
}

const SAID = {
  sending: "Sending …",
  waiting: "Waiting for the first word …",
  writing: "",
  resuming: "Taking the answer up again …",
  down: "The connection dropped.",
  polling: "This network holds streams back, so the answer comes in pieces.",
  stopping: "Stopping …",
  locked: "Log in to go on.",
};

function LiveLine({ live }: { live: Live }) {
  const phase = live.phase.value;
  const resumed = live.resumed.value && phase !== "down";
  const waits = phase === "waiting" || phase === "sending" || phase === "resuming";
  return (
    <div class={`line ${phase}`} data-phase={phase}>
      {waits && <span class="dots" aria-hidden="true" />}
      {resumed ? (
        <span class="back">Connected again; nothing was lost.</span>
      ) : (
        <span>{SAID[phase]}</span>
      )}
      {phase === "down" && (
        <>
          <span>
            <Countdown live={live} />
          </span>
          <button type="button" class="quiet" onClick={live.retryNow}>
            Try now
          </button>
        </>
      )}
      <FiguresLine figures={live.figures.value} />
    </div>
  );
}

function outcomeText({ outcome, problem, stream }: Message): string {
  if (stream) return "Log in to go on with this answer.";
  if (outcome === "stopped") return "Stopped.";
  if (outcome === "length") return "Cut off at the most tokens that were allowed.";
  return problem ?? "";
}

function EndLine({ message }: { message: Message }) {
  const said = outcomeText(message);
  const bad = message.outcome === "error" || message.outcome === "lost";
  return (
    <div class="line">
      {said && <span class={bad ? "problem" : ""}>{said}</span>}
      {message.text && (
        <button
          type="button"
          class="quiet"
          aria-label="Copy this answer"
          onClick={({ currentTarget }) => copy(message.text, currentTarget)}
        >
          Copy
        </button>
      )}
      <button
        type="button"
        class="quiet"
        aria-label="Retry this answer"
        onClick={() => retry(message)}
      >
        Retry
      </button>
      {message.figures && <FiguresLine figures={message.figures} />}
    </div>
  );
}

interface AnswerProps {
  message: Message;
  onDraw: () => void;
}

export function Answer({ message, onDraw }: AnswerProps) {
  const live = lives.value.get(message.id);
  return (
    <article class="message answer" aria-busy={live !== undefined}>
      <h2 class="author">{message.model || "Answer"}</h2>
      <Reasoning message={message} live={live} />
      <Text message={message} live={live} onDraw={onDraw} />
      {live ? <LiveLine live={live} /> : <EndLine message={message} />}
    </article>
  );
}
