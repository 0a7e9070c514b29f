/** Small things that outlive a page: drafts, the last model, how new conversations start. */

import type { Setup } from "./model.ts";

const PREFIX = "millrace.";

function read(name: string): string {
  try {
    return localStorage.getItem(PREFIX + name) ?? "";
  } catch {
    return ""; // Storage may be forbidden; the page works without.
  }
}

function write(name: string, value: string): void {
  try {
    if (value) localStorage.setItem(PREFIX + name, value);
    else localStorage.removeItem(PREFIX + name);
  } catch {
    // Full or forbidden: only comfort is lost.
  }
}

export const readDraft = (conversation: string): string => read(`draft.${conversation}`);
export const writeDraft = (conversation: string, text: string): void =>
  write(`draft.${conversation}`, text);

export const readModel = (): string => read("model");
export const writeModel = (id: string): void => write("model", id);

export const PLAIN_SETUP: Setup = {
  system: "",
  parameters: { temperature: null, top_p: null, max_tokens: null },
};

export function readSetup(): Setup {
  try {
    return { ...PLAIN_SETUP, ...(JSON.parse(read("setup") || "{}") as Partial<Setup>) };
  } catch {
    return PLAIN_SETUP;
  }
}

export const writeSetup = (setup: Setup): void => write("setup", JSON.stringify(setup));

/** Forget everything that was written here. */
export function forgetAll(): void {
  try {
    for (const name of Object.keys(localStorage)) {
      if (name.startsWith(PREFIX)) localStorage.removeItem(name);
    }
  } catch {
    // Nothing was kept, then.
  }
}
