// Runs what one client library is asked to do; see kit.py, which does the same for Python.

import assert from "node:assert/strict";
import { once } from "node:events";

export const URL = process.env.MILLRACE_URL;
export const KEY = process.env.MILLRACE_KEY;
export const LIMITED_KEY = process.env.MILLRACE_LIMITED_KEY;
export const MODEL = "recital";
export const BEGINNING = "# The mill race";
export const HOLD = "hold";
export const ASKED = "How does the water find its way?";
export const SCHEMA = {
  type: "object",
  properties: { stage: { enum: ["weir", "wheel", "race"] }, open: { type: "boolean" } },
  required: ["stage", "open"],
  additionalProperties: false,
};

const scenarios = [];

export function scenario(name, run) {
  scenarios.push([name, run]);
}

export function fitsSchema(told) {
  assert.ok(SCHEMA.properties.stage.enum.includes(told.stage), JSON.stringify(told));
  assert.equal(typeof told.open, "boolean");
}

export async function run() {
  const wanted = process.argv[2] ?? "";
  for (const [name, work] of scenarios) {
    if (!name.includes(wanted)) continue;
    let error = null;
    let result = null;
    try {
      result = await work();
    } catch (thrown) {
      error = thrown instanceof Error ? `${thrown.stack}` : String(thrown);
    }
    console.log(JSON.stringify({ scenario: name, error, held: result === HOLD }));
    if (result === HOLD) await once(process.stdin, "data");
  }
  // Open connections would keep it alive.
  process.exit(0);
}
