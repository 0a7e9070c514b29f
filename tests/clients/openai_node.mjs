// What people do with OpenAI's Node library.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { ASKED, BEGINNING, fitsSchema, HOLD, KEY, LIMITED_KEY, MODEL, run, SCHEMA, scenario, URL } from "./kit.mjs";

const options = { baseURL: URL, maxRetries: 0, timeout: 60_000 };
const client = new OpenAI({ ...options, apiKey: KEY });
const messages = [{ role: "user", content: ASKED }];
const tools = [
  { type: "function", function: { name: "set_gate", description: "Move a gate", parameters: SCHEMA } },
];
const tool_choice = { type: "function", function: { name: "set_gate" } };

function ask(more = {}, by = client) {
  return by.chat.completions.create({ model: MODEL, messages, max_tokens: 30, ...more });
}

scenario("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, [MODEL]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});

scenario("chat", async () => {
  const answer = await ask();
  assert.ok(answer.choices[0].message.content.startsWith(BEGINNING));
  assert.equal(answer.usage.completion_tokens, 30);
});

scenario("chat, streamed", async () => {
  let text = "";
  let count = 0;
  for await (const chunk of await ask({ stream: true })) {
    text += chunk.choices[0].delta.content ?? "";
    count += 1;
    assert.ok(!chunk.usage);
  }
  assert.ok(text.startsWith(BEGINNING));
  // An engine puts tokens together whose reader is slow.
  assert.ok(count > 5);
});

scenario("chat, streamed with the count", async () => {
  let last;
  const stream = await ask({ stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) last = chunk;
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, 30);
});

scenario("chat, by the library's own stream helper", async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages, stop: ["\n\n"] });
  assert.ok((await stream.finalContent()).startsWith(BEGINNING));
});

scenario("log probabilities", async () => {
  const answer = await ask({ max_tokens: 4, logprobs: true, top_logprobs: 2 });
  assert.equal(answer.choices[0].logprobs.content.length, 4);
});

scenario("JSON by schema", async () => {
  const json_schema = { name: "gate", schema: SCHEMA, strict: true };
  const answer = await ask({ max_tokens: 200, response_format: { type: "json_schema", json_schema } });
  fitsSchema(JSON.parse(answer.choices[0].message.content));
});

scenario("a named tool and its result", async () => {
  const answer = await ask({ max_tokens: 200, tools, tool_choice });
  const said = answer.choices[0].message;
  fitsSchema(JSON.parse(said.tool_calls[0].function.arguments));
  const result = { role: "tool", tool_call_id: said.tool_calls[0].id, content: "done" };
  const again = await ask({ messages: [...messages, said, result] });
  assert.ok(again.choices[0].message.content);
});

scenario("a named tool, streamed", async () => {
  let told = "";
  for await (const chunk of await ask({ max_tokens: 200, tools, tool_choice, stream: true }))
    told += chunk.choices[0].delta.tool_calls?.[0]?.function?.arguments ?? "";
  fitsSchema(JSON.parse(told));
});

scenario("completions", async () => {
  const body = { model: MODEL, prompt: "The mill", max_tokens: 8 };
  const whole = await client.completions.create(body);
  let text = "";
  for await (const chunk of await client.completions.create({ ...body, stream: true }))
    text += chunk.choices[0].text;
  assert.equal(text, whole.choices[0].text);
});

scenario("responses", async () => {
  const body = { model: MODEL, input: ASKED, max_output_tokens: 30 };
  assert.ok((await client.responses.create(body)).output_text.startsWith(BEGINNING));
  let text = "";
  for await (const event of await client.responses.create({ ...body, stream: true }))
    if (event.type === "response.output_text.delta") text += event.delta;
  assert.ok(text.startsWith(BEGINNING));
});

scenario("errors are those of the library", async () => {
  await assert.rejects(ask({ model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(ask({ n: 10_000 }), OpenAI.BadRequestError);
  await assert.rejects(ask({ max_tokens: 10_000_000, stream: true }), OpenAI.BadRequestError);
  await assert.rejects(client.embeddings.create({ model: MODEL, input: "x" }), OpenAI.NotFoundError);
  const stranger = new OpenAI({ ...options, apiKey: "mr-wrong" });
  await assert.rejects(ask({}, stranger), OpenAI.AuthenticationError);
});

scenario("a key that has had its share is a RateLimitError", async () => {
  const limited = new OpenAI({ ...options, apiKey: LIMITED_KEY });
  // Another program may have had it already.
  await ask({ max_tokens: 3 }, limited).catch(() => {});
  await assert.rejects(ask({ max_tokens: 3 }, limited), OpenAI.RateLimitError);
});

scenario("leaving in mid-stream frees the engine", async () => {
  const stream = await ask({ max_tokens: 8000, ignore_eos: true, stream: true });
  let count = 0;
  for await (const _ of stream) if (++count === 20) break;
  return HOLD;
});

await run();
