/** The open conversation. The view stays at the newest words until its reader scrolls up. */

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { open } from "../desk.ts";
import { modelsProblem } from "../session.ts";
import { Answer } from "./Answer.tsx";
import { Composer } from "./Composer.tsx";
import { Icon } from "./icons.tsx";
import { Question } from "./Question.tsx";

/** Within this many pixels of its end a reader is taken to be at it. */
const AT_END = 48;

export function Chat() {
  const { id, messages, title } = open.value;
  const scroller = useRef<HTMLElement>(null);
  const following = useRef(true);
  const [away, setAway] = useState(false);

  const toEnd = useCallback(() => {
    const box = scroller.current;
    if (box && following.current) box.scrollTop = box.scrollHeight;
  }, []);

  useEffect(() => {
    following.current = true;
    setAway(false);
    toEnd();
  }, [id, messages.length]);

  function onScroll(): void {
    const box = scroller.current;
    if (!box) return;
    following.current = box.scrollHeight - box.scrollTop - box.clientHeight < AT_END;
    if (away === following.current) setAway(!following.current);
  }

  return (
    <>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: the keyboard scrolls what has the focus. */}
      <main class="thread" id="main" tabIndex={0} ref={scroller} onScroll={onScroll}>
        <h1 class="hidden">{title || "New conversation"}</h1>
        {modelsProblem.value && <p class="notice">{modelsProblem.value}</p>}
        {messages.length === 0 && (
          <div class="empty">
            <p>What would you like to know?</p>
            <p class="muted">
              Conversations stay in this browser. An answer goes on when the connection drops or the
              page is reloaded.
            </p>
          </div>
        )}
        <div class="column">
          {messages.map((message) =>
            message.role === "user" ? (
              <Question key={message.id} message={message} />
            ) : (
              <Answer key={message.id} message={message} onDraw={toEnd} />
            ),
          )}
        </div>
      </main>
      <section class="foot" aria-label="Write a message">
        {away && (
          <button
            type="button"
            class="round to-end"
            aria-label="Go to the newest words"
            onClick={() => {
              following.current = true;
              toEnd();
            }}
          >
            <Icon name="down" />
          </button>
        )}
        <Composer />
      </section>
    </>
  );
}
