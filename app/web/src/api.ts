/** Calls to the backend, and the two ways in which they fail. */

/** The backend answered, and refused. `code` is its machine-readable reason. */
export class Refusal extends Error {
  readonly status: number;
  readonly code: string;
  /** Seconds to wait before another try, when the backend named them. */
  readonly retryAfter: number | null;

  constructor(status: number, message: string, code: string, retryAfter: number | null) {
    super(message);
    this.name = "Refusal";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Nothing answered: the network is away, or the server is. */
export class LineDown extends Error {
  constructor() {
    super("The service cannot be reached.");
    this.name = "LineDown";
  }
}

/** Called when any answer says that nobody is logged in (any more). */
let onLocked: () => void = () => {};

export function whenLocked(act: () => void): void {
  onLocked = act;
}

export interface Call {
  method?: "GET" | "POST" | "DELETE";
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

async function refusalOf(response: Response): Promise<Refusal> {
  let message = `The service answered ${response.status}.`;
  let code = "";
  try {
    const { error } = (await response.json()) as { error: { message?: string; code?: string } };
    message = error.message ?? message;
    code = String(error.code ?? "");
  } catch {
    // A proxy's own page: its status says all that there is to say.
  }
  const seconds = Number(response.headers.get("Retry-After") ?? Number.NaN);
  return new Refusal(response.status, message, code, Number.isFinite(seconds) ? seconds : null);
}

/**
 * Ask the backend, and return its answer when that is a success.
 * Throws Refusal, LineDown, or the AbortError of `signal`.
 */
export async function call(path: string, options: Call = {}): Promise<Response> {
  const { method = "GET", body, headers = {}, signal } = options;
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? headers : { ...headers, "Content-Type": "application/json" },
      body: body === undefined ? null : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      signal: signal ?? null,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new LineDown();
  }
  if (response.ok) return response;
  const refusal = await refusalOf(response);
  if (refusal.status === 401 && path !== "/v1/session") onLocked();
  throw refusal;
}

export async function callJson<T>(path: string, options: Call = {}): Promise<T> {
  const response = await call(path, options);
  return (await response.json()) as T;
}
