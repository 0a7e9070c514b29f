/** A question, and its text while it is being edited. */

import { useEffect, useRef } from "preact/hooks";
import { editing, replace } from "../desk.ts";
import type { Message } from "../store/model.ts";

function Editor({ message }: { message: Message }) {
  const field = useRef<HTMLTextAreaElement>(null);

  useEffect(() => {
    field.current?.focus();
    field.current?.setSelectionRange(message.text.length, message.text.length);
  }, []);

  function submit(event: Event): void {
    event.preventDefault();
    const text = field.current?.value.trim() ?? "";
    if (text) replace(message, text);
  }

  return (
    <form class="editor" onSubmit={submit}>
      <label class="hidden" for={`edit-${message.id}`}>
        Edit your message
      </label>
      <textarea
        id={`edit-${message.id}`}
        ref={field}
        rows={3}
        defaultValue={message.text}
        onKeyDown={(event) => {
          if (event.key === "Escape") editing.value = null;
        }}
      />
      <div class="line">
        <button type="submit" class="primary">
          Send again
        </button>
        <button type="button" class="quiet" onClick={() => (editing.value = null)}>
          Cancel
        </button>
      </div>
    </form>
  );
}

export function Question({ message }: { message: Message }) {
  const edited = editing.value === message.id;
  const button = useRef<HTMLButtonElement>(null);
  const before = useRef(edited);

  useEffect(() => {
    if (before.current && !edited) button.current?.focus();
    before.current = edited;
  }, [edited]);

  return (
    <article class="message question">
      <h2 class="author">You</h2>
      {edited ? <Editor message={message} /> : <p class="said">{message.text}</p>}
      {!edited && (
        <div class="line">
          <button
            type="button"
            class="quiet"
            ref={button}
            aria-label="Edit this message"
            onClick={() => (editing.value = message.id)}
          >
            Edit
          </button>
        </div>
      )}
    </article>
  );
}
