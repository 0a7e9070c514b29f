// What people do with the AI SDK, by both of its ways to an OpenAI-compatible service.

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, Output, streamText, tool } from "ai";
import { ASKED, BEGINNING, fitsSchema, HOLD, KEY, LIMITED_KEY, MODEL, run, SCHEMA, scenario, URL } from "./kit.mjs";

function compatible(apiKey = KEY) {
  return createOpenAICompatible({
    name: "millrace",
    baseURL: URL,
    apiKey,
    supportsStructuredOutputs: true,
  });
}

const own = createOpenAI({ baseURL: URL, apiKey: KEY });
const chatModels = [compatible()(MODEL), own.chat(MODEL)];
const models = [...chatModels, own.responses(MODEL)];
const asked = { prompt: ASKED, maxOutputTokens: 30, maxRetries: 0 };
const gate = { inputSchema: jsonSchema(SCHEMA), description: "Move a gate" };

scenario("chat", async () => {
  for (const model of models) {
    const answer = await generateText({ ...asked, model, system: "Recite." });
    assert.ok(answer.text.startsWith(BEGINNING), model.provider);
    assert.equal(answer.usage.outputTokens, 30, model.provider);
  }
});

scenario("chat, streamed", async () => {
  for (const model of models) {
    const errors = [];
    const answer = streamText({ ...asked, model, onError: ({ error }) => errors.push(error) });
    let text = "";
    let count = 0;
    for await (const piece of answer.textStream) {
      text += piece;
      count += 1;
    }
    assert.deepEqual(errors, [], model.provider);
    assert.ok(text.startsWith(BEGINNING), model.provider);
    // An engine puts tokens together whose reader is slow.
    assert.ok(count > 5, `${model.provider}: ${count} pieces`);
  }
});

scenario("JSON by schema", async () => {
  const output = Output.object({ schema: jsonSchema(SCHEMA) });
  for (const model of models) {
    const answer = await generateText({ ...asked, model, maxOutputTokens: 200, output });
    fitsSchema(answer.output);
  }
});

scenario("a tool is called and answered", async () => {
  for (const model of chatModels) {
    let moved = null;
    const execute = async (told) => {
      moved = told;
      return "done";
    };
    const answer = await generateText({
      ...asked,
      model,
      maxOutputTokens: 200,
      tools: { set_gate: tool({ ...gate, execute }) },
      toolChoice: { type: "tool", toolName: "set_gate" },
    });
    fitsSchema(moved);
    assert.equal(answer.toolResults[0].output, "done", model.provider);
  }
});

async function refusedWith(status, more) {
  await assert.rejects(
    generateText({ ...asked, model: chatModels[0], ...more }),
    (error) => APICallError.isInstance(error) && error.statusCode === status,
  );
}

scenario("errors are those of the library", async () => {
  await refusedWith(401, { model: compatible("mr-wrong")(MODEL) });
  await refusedWith(404, { model: compatible()("nobody") });
  await refusedWith(400, { maxOutputTokens: 10_000_000 });
});

scenario("a key that has had its share is an error with 429", async () => {
  const model = compatible(LIMITED_KEY)(MODEL);
  // Another program may have had it already.
  await generateText({ ...asked, model, maxOutputTokens: 3 }).catch(() => {});
  await refusedWith(429, { model });
});

scenario("leaving in mid-stream frees the engine", async () => {
  const abort = new AbortController();
  const model = chatModels[0];
  const answer = streamText({
    ...asked,
    model,
    maxOutputTokens: 8000,
    abortSignal: abort.signal,
    onError: () => {},
  });
  let count = 0;
  try {
    for await (const _ of answer.textStream) if (++count === 20) abort.abort();
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
  assert.ok(count >= 20);
  return HOLD;
});

await run();
