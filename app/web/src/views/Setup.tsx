/** How this conversation is asked: system prompt and parameters. And what is kept in the browser. */

import { useRef, useState } from "preact/hooks";
import { exportAll, open, removeEverything, setUp } from "../desk.ts";
import { logOut, session } from "../session.ts";
import type { Parameters } from "../store/model.ts";
import { Dialog } from "./Dialog.tsx";

const FIELDS: { name: keyof Parameters; label: string; min: number; max?: number; step: number }[] =
  [
    { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1 },
    { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01 },
    { name: "max_tokens", label: "Most tokens", min: 1, step: 1 },
  ];

function numberOf(value: FormDataEntryValue | null): number | null {
  return typeof value === "string" && value.trim() !== "" ? Number(value) : null;
}

export function SetupDialog({ onClose }: { onClose: () => void }) {
  const { system, parameters } = open.value;
  const form = useRef<HTMLFormElement>(null);
  const [sure, setSure] = useState(false);

  function keep(event: Event): void {
    event.preventDefault();
    if (!form.current) return;
    const given = new FormData(form.current);
    setUp(
      {
        system: String(given.get("system") ?? ""),
        parameters: {
          temperature: numberOf(given.get("temperature")),
          top_p: numberOf(given.get("top_p")),
          max_tokens: numberOf(given.get("max_tokens")),
        },
      },
      given.get("for-new") !== null,
    );
    form.current.closest("dialog")?.close();
  }

  return (
    <Dialog title="Settings" onClose={onClose}>
      <form ref={form} onSubmit={keep} class="setup">
        <label for="system">System prompt</label>
        <textarea id="system" name="system" rows={4} defaultValue={system} />
        <div class="fields">
          {FIELDS.map(({ name, label, ...limits }) => (
            <div key={name}>
              <label for={name}>{label}</label>
              <input
                id={name}
                name={name}
                type="number"
                inputMode="decimal"
                placeholder="default"
                defaultValue={parameters[name] ?? ""}
                {...limits}
              />
            </div>
          ))}
        </div>
        <label class="check">
          <input type="checkbox" name="for-new" /> For new conversations too
        </label>
        <button type="submit" class="primary">
          Keep
        </button>
      </form>
      <section class="kept" aria-labelledby="kept">
        <h3 id="kept">Kept in this browser</h3>
        <div class="line">
          <button type="button" class="plain" onClick={() => void exportAll()}>
            Export as JSON
          </button>
          <button
            type="button"
            class="plain danger"
            onClick={() => {
              if (sure) void removeEverything();
              setSure(!sure);
            }}
          >
            {sure ? "Really delete everything" : "Delete all conversations"}
          </button>
        </div>
      </section>
      <section class="kept" aria-labelledby="who">
        <h3 id="who">{session.value?.key ? `Logged in as ${session.value.key}` : "Logged in"}</h3>
        <button
          type="button"
          class="plain"
          onClick={({ currentTarget }) => {
            currentTarget.closest("dialog")?.close();
            void logOut();
          }}
        >
          Log out
        </button>
      </section>
    </Dialog>
  );
}
