/** What a screen reader is told: changes of state, politely, never an answer's every word. */

import { signal } from "@preact/signals";

export const announcement = signal("");

/** Say something once, when the listener is idle. */
export function announce(text: string): void {
  // The same words twice are no change, and would not be read.
  announcement.value = announcement.value === text ? `${text}\u00a0` : text;
}
