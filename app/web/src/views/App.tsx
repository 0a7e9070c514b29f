/** The page: its header, the conversations beside it, and the view that is asked for. */

import { useEffect, useRef, useState } from "preact/hooks";
import { announcement } from "../announce.ts";
import { chooseModel, chosenModel, route, undo } from "../desk.ts";
import { models, session } from "../session.ts";
import { Chat } from "./Chat.tsx";
import { Dialog } from "./Dialog.tsx";
import { Icon } from "./icons.tsx";
import { Login } from "./Login.tsx";
import { SetupDialog } from "./Setup.tsx";
import { Sidebar } from "./Sidebar.tsx";
import { StatusView } from "./Status.tsx";

const UNDO_MS = 10_000;

function Announcer() {
  return (
    <p class="hidden" role="status" aria-live="polite">
      {announcement.value}
    </p>
  );
}

function Undo() {
  const offered = undo.value;
  useEffect(() => {
    if (!offered) return;
    const timer = setTimeout(() => {
      if (undo.value === offered) undo.value = null;
    }, UNDO_MS);
    return () => clearTimeout(timer);
  }, [offered]);
  return (
    <div class="undo" role="status">
      {offered && (
        <p>
          <span>{offered.text}</span>
          <button
            type="button"
            onClick={() => {
              undo.value = null;
              offered.act();
            }}
          >
            Undo
          </button>
        </p>
      )}
    </div>
  );
}

function ModelPicker() {
  const chosen = chosenModel();
  return (
    <>
      <label class="hidden" for="model">
        Model
      </label>
      <select
        id="model"
        class="model"
        value={chosen}
        disabled={models.value.length === 0}
        onChange={({ currentTarget }) => chooseModel(currentTarget.value)}
      >
        {models.value.map((id) => (
          <option key={id} value={id}>
            {id}
          </option>
        ))}
      </select>
    </>
  );
}

function Desk() {
  const [drawer, setDrawer] = useState(false);
  const [setup, setSetup] = useState(false);
  const status = route.value === "status";
  const first = useRef(true);

  // A new view begins at its beginning, for the keyboard and for those who listen as well.
  useEffect(() => {
    if (!first.current) document.getElementById("main")?.focus();
    first.current = false;
  }, [status]);

  return (
    <div class="desk">
      {/* biome-ignore lint/a11y/useValidAnchor: it leads to #main; the address holds the conversation. */}
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to the conversation
      </a>
      <nav class="side" aria-label="Conversations">
        <Sidebar onChosen={() => {}} />
      </nav>
      <div class="room">
        <header class="head">
          <button
            type="button"
            class="quiet only-small"
            aria-label="Conversations"
            onClick={() => setDrawer(true)}
          >
            <Icon name="menu" />
          </button>
          <ModelPicker />
          <span class="space" />
          <a
            class="quiet"
            href={status ? "#/" : "#/status"}
            aria-label={status ? "Back to the conversation" : "Status of the service"}
            title="Status"
          >
            <Icon name={status ? "close" : "pulse"} />
          </a>
          <button
            type="button"
            class="quiet"
            aria-label="Settings"
            title="Settings"
            onClick={() => setSetup(true)}
          >
            <Icon name="sliders" />
          </button>
        </header>
        {status ? <StatusView /> : <Chat />}
      </div>
      {drawer && (
        <Dialog title="Conversations" onClose={() => setDrawer(false)}>
          <nav aria-label="Conversations">
            <Sidebar onChosen={() => setDrawer(false)} />
          </nav>
        </Dialog>
      )}
      {setup && <SetupDialog onClose={() => setSetup(false)} />}
    </div>
  );
}

export function App() {
  const known = session.value;
  return (
    <>
      {known === null && <Login />}
      {known && <Desk />}
      <Undo />
      <Announcer />
    </>
  );
}
