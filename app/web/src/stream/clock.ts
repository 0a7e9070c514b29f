/** Pauses that end early when there is reason to: the network is back, the page is looked at. */

import type { Clock } from "./follow.ts";

export interface WakeableClock extends Clock {
  /** End the pauses that are going on. */
  wake(): void;
}

/** Shorter pauses, in ms, are not worth waking from. */
const LONG_MS = 600;

export function browserClock(): WakeableClock {
  const sleeping = new Set<() => void>();
  const wake = (): void => {
    for (const end of sleeping) end();
  };
  return {
    wake,
    now: () => Date.now(),
    onOffline: (act, signal) => window.addEventListener("offline", act, { signal }),
    pause: (milliseconds, signal) =>
      new Promise((resolve) => {
        const seen = (): void => {
          if (!document.hidden) end();
        };
        const end = (): void => {
          clearTimeout(timer);
          sleeping.delete(end);
          signal.removeEventListener("abort", end);
          window.removeEventListener("online", end);
          document.removeEventListener("visibilitychange", seen);
          resolve();
        };
        const timer = setTimeout(end, milliseconds);
        signal.addEventListener("abort", end);
        if (signal.aborted) return end();
        if (milliseconds < LONG_MS) return;
        sleeping.add(end);
        window.addEventListener("online", end);
        document.addEventListener("visibilitychange", seen);
      }),
  };
}
