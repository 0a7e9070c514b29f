/** The conversations that this browser keeps. */

import { heads, open, removeConversation, startNew } from "../desk.ts";
import { Icon } from "./icons.tsx";

export function Sidebar({ onChosen }: { onChosen: () => void }) {
  return (
    <>
      <button
        type="button"
        class="plain new"
        onClick={() => {
          startNew();
          onChosen();
        }}
      >
        <Icon name="plus" /> New conversation
      </button>
      <ul class="heads">
        {heads.value.map(({ id, title }) => (
          <li key={id}>
            <a
              href={`#/c/${id}`}
              aria-current={open.value.id === id ? "page" : undefined}
              onClick={onChosen}
            >
              {title || "Untitled"}
            </a>
            <button
              type="button"
              class="quiet"
              aria-label={`Delete ${title || "Untitled"}`}
              onClick={() => void removeConversation(id)}
            >
              <Icon name="trash" />
            </button>
          </li>
        ))}
      </ul>
      {heads.value.length === 0 && <p class="muted">Nothing is kept yet.</p>}
    </>
  );
}
