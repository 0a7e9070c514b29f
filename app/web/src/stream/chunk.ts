/** What one event of a chat stream says. */

export interface Usage {
  prompt_tokens?: number;
  completion_tokens?: number;
}

export interface Chunk {
  end: boolean;
  text: string;
  reasoning: string;
  /** Why the model ended: `stop`, `length`, ... */
  finish: string | null;
  usage: Usage | null;
  error: string | null;
}

interface Raw {
  choices?: {
    delta?: {
      content?: string | null;
      reasoning?: string | null;
      reasoning_content?: string | null;
    };
    finish_reason?: string | null;
  }[];
  usage?: Usage | null;
  error?: { message?: string };
}

const NOTHING: Chunk = {
  end: false,
  text: "",
  reasoning: "",
  finish: null,
  usage: null,
  error: null,
};

/** Read an event's data. What is no JSON becomes an error: a stream is never cut short in silence. */
export function readChunk(data: string): Chunk {
  if (data === "[DONE]") return { ...NOTHING, end: true };
  let raw: Raw;
  try {
    raw = JSON.parse(data) as Raw;
  } catch {
    return { ...NOTHING, error: "The service sent something unreadable." };
  }
  const choice = raw.choices?.[0];
  return {
    end: false,
    text: choice?.delta?.content ?? "",
    // vLLM names it `reasoning`, older versions and others `reasoning_content`.
    reasoning: choice?.delta?.reasoning ?? choice?.delta?.reasoning_content ?? "",
    finish: choice?.finish_reason ?? null,
    usage: raw.usage ?? null,
    error: raw.error ? (raw.error.message ?? "The answer broke off.") : null,
  };
}
