/** Logging in with a key. The draft and what is on the screen stay as they are behind it. */

import { useEffect, useRef, useState } from "preact/hooks";
import { logIn } from "../session.ts";

export function Login() {
  const field = useRef<HTMLInputElement>(null);
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);

  useEffect(() => field.current?.focus(), []);

  async function submit(event: Event): Promise<void> {
    event.preventDefault();
    const key = field.current?.value.trim() ?? "";
    if (!key) {
      setProblem("Enter the key first.");
    } else {
      setBusy(true);
      setProblem(await logIn(key));
      setBusy(false);
    }
    field.current?.focus();
  }

  return (
    <main class="login" id="main" tabIndex={-1}>
      <form onSubmit={submit} autocomplete="on">
        <h1>Millrace</h1>
        <p class="muted">Log in with the key that you were given.</p>
        <input
          class="hidden"
          name="username"
          autocomplete="username"
          value="millrace"
          readOnly
          aria-hidden="true"
          tabIndex={-1}
        />
        <label for="key">Key</label>
        <input
          id="key"
          ref={field}
          name="key"
          type="password"
          autocomplete="current-password"
          autocapitalize="off"
          spellcheck={false}
          aria-invalid={problem !== ""}
          aria-describedby="key-problem"
        />
        <p id="key-problem" class="problem" role="alert">
          {problem}
        </p>
        <button type="submit" class="primary" aria-disabled={busy}>
          {busy ? "Logging in …" : "Log in"}
        </button>
      </form>
    </main>
  );
}
