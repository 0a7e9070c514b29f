/** Where a question is written. What is written survives a reload and a log-in. */

import { useEffect, useRef, useState } from "preact/hooks";
import { liveOf } from "../answers.ts";
import { open, send } from "../desk.ts";
import { models } from "../session.ts";
import { readDraft, writeDraft } from "../store/local.ts";
import { Icon } from "./icons.tsx";

/** A phone's Return key makes a new line; there is a button for sending. */
const hasKeyboard = (): boolean => matchMedia("(hover: hover) and (pointer: fine)").matches;

export function Composer() {
  const conversation = open.value;
  const live = liveOf(conversation);
  const field = useRef<HTMLTextAreaElement>(null);
  const [draft, setDraft] = useState(readDraft(conversation.id));
  const place = conversation.messages.length > 0 ? conversation.id : "new";

  useEffect(() => {
    setDraft(readDraft(place));
    if (hasKeyboard()) field.current?.focus();
  }, [place]);

  function write(text: string): void {
    setDraft(text);
    writeDraft(place, text);
  }

  function submit(event: Event): void {
    event.preventDefault();
    if (live) {
      live.stop();
      return;
    }
    const text = draft.trim();
    if (!text || models.value.length === 0) return;
    write("");
    send(text);
    field.current?.focus();
  }

  function onKeyDown(event: KeyboardEvent): void {
    if (event.key === "Escape" && live) live.stop();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || !hasKeyboard()) return;
    event.preventDefault();
    if (!live) submit(event);
  }

  return (
    <form class="composer" onSubmit={submit}>
      <label class="hidden" for="draft">
        Your message
      </label>
      <textarea
        id="draft"
        ref={field}
        rows={Math.min(8, draft.split("\n").length)}
        placeholder="Ask something"
        value={draft}
        aria-describedby="draft-help"
        onInput={({ currentTarget }) => write(currentTarget.value)}
        onKeyDown={onKeyDown}
      />
      <span class="hidden" id="draft-help">
        Enter sends, Shift and Enter begins a new line, Escape stops an answer.
      </span>
      {live ? (
        <button type="submit" class="round" aria-label="Stop the answer" title="Stop (Esc)">
          <Icon name="stop" />
        </button>
      ) : (
        <button
          type="submit"
          class="round"
          aria-label="Send"
          title="Send (Enter)"
          aria-disabled={!draft.trim() || models.value.length === 0}
        >
          <Icon name="send" />
        </button>
      )}
    </form>
  );
}
