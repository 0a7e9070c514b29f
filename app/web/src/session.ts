/** Who is logged in, and which models the service has for them. */

import { signal } from "@preact/signals";
import { call, callJson, LineDown, Refusal, whenLocked } from "./api.ts";

export interface Session {
  /** The key's name. */
  key: string;
  /** Unix seconds, or null for a key that does not expire. */
  expires: number | null;
}

/** `undefined` until the service has been asked, `null` when nobody is logged in. */
export const session = signal<Session | null | undefined>(undefined);
export const models = signal<string[]>([]);
/** Why the models could not be fetched, for people; empty when they were. */
export const modelsProblem = signal("");

whenLocked(() => {
  session.value = null;
});

/** Ask who is logged in. Without a network the page opens all the same: what is kept can be read. */
export async function enter(): Promise<void> {
  try {
    session.value = await callJson<Session>("/v1/session");
    await loadModels();
  } catch (error) {
    if (error instanceof LineDown) {
      session.value = { key: "", expires: null };
      modelsProblem.value = error.message;
      addEventListener("online", () => void enter(), { once: true });
    } else {
      session.value = null;
    }
  }
}

export async function loadModels(): Promise<void> {
  try {
    const { data } = await callJson<{ data: { id: string }[] }>("/v1/models");
    models.value = data.map(({ id }) => id);
    modelsProblem.value = data.length > 0 ? "" : "The service has no model for this key.";
  } catch (error) {
    modelsProblem.value = error instanceof Error ? error.message : String(error);
  }
}

/** Log in. Returns what went wrong, for people, or nothing. */
export async function logIn(key: string): Promise<string> {
  try {
    await call("/v1/session", { method: "POST", body: { key } });
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) {
      return "The service does not know this key. Check it for missing letters.";
    }
    if (error instanceof Refusal && error.status === 429) {
      const wait = error.retryAfter ? ` Try again in ${Math.ceil(error.retryAfter)} s.` : "";
      return `Too many tries from here.${wait}`;
    }
    return error instanceof Error ? error.message : String(error);
  }
  await enter();
  return session.value ? "" : "The browser did not keep the session: are cookies allowed?";
}

export async function logOut(): Promise<void> {
  try {
    await call("/v1/session", { method: "DELETE" });
  } finally {
    session.value = null;
  }
}
