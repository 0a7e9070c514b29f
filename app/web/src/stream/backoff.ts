/** How long to wait before the next try at a line that dropped. */

const FIRST_MS = 300;
const LONGEST_MS = 15_000;

/**
 * Milliseconds before try `attempt` (0, 1, 2 ...): doubling, with half of it left to chance, so that
 * all the pages that one restart cut off do not come back in the same instant.
 * `asked` is what the server asked for, in milliseconds, and is the least.
 */
export function backoff(attempt: number, asked = 0, chance: () => number = Math.random): number {
  const whole = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(attempt, 16));
  return Math.max(asked, Math.round(whole / 2 + (whole / 2) * chance()));
}
