/** What the page keeps: conversations and their messages. */

export interface Parameters {
  temperature: number | null;
  top_p: number | null;
  max_tokens: number | null;
}

export interface Setup {
  system: string;
  parameters: Parameters;
}

/** How an answer came out. */
export type Outcome = "whole" | "length" | "stopped" | "error" | "lost";

export interface Figures {
  /** From the question's sending to the first word; null where the page did not see it. */
  firstTokenMs: number | null;
  tokens: number;
  tokensPerSecond: number | null;
}

export interface Message {
  id: string;
  role: "user" | "assistant";
  text: string;
  /** What a reasoning model thought before it answered. */
  reasoning?: string;
  model?: string;
  outcome?: Outcome;
  /** What went wrong, for people. */
  problem?: string;
  figures?: Figures;
  /** While the answer is being written: where to go on reading. Saved together with the text. */
  stream?: { id: string; after: number } | undefined;
}

export interface Conversation extends Setup {
  id: string;
  title: string;
  created: number;
  updated: number;
  model: string;
  messages: Message[];
}

/** What the list of conversations shows, so that it need not load every answer. */
export interface Head {
  id: string;
  title: string;
  updated: number;
  /** An answer was being written when it was last saved. */
  open: boolean;
}

export const TITLE_LENGTH = 60;

export function titleOf(text: string): string {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}

export function headOf({ id, title, updated, messages }: Conversation): Head {
  return { id, title, updated, open: messages.some((message) => message.stream) };
}

/** The messages as the model is asked: an answer that never came is left out. */
export function promptOf({ system, messages }: Conversation): { role: string; content: string }[] {
  const said = messages
    .filter((message) => message.text !== "")
    .map(({ role, text }) => ({ role, content: text }));
  return system.trim() ? [{ role: "system", content: system }, ...said] : said;
}

export function parametersOf({ parameters }: Setup): Record<string, number> {
  return Object.fromEntries(
    Object.entries(parameters).filter((entry): entry is [string, number] => entry[1] !== null),
  );
}
