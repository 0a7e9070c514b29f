/** Copying, with an answer at the button and for those who listen. */

import { announce } from "./announce.ts";

const SHOWN_MS = 1_500;

export async function copy(text: string, button: HTMLButtonElement): Promise<void> {
  const before = button.textContent;
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    said = "Not allowed";
  }
  announce(said);
  button.textContent = said;
  setTimeout(() => {
    button.textContent = before;
  }, SHOWN_MS);
}
