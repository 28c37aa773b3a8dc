// The Vercel AI SDK with its OpenAI-compatible provider, against the cluster of OPENAI_BASE_URL. Exits with an error if
// anything is off.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, embedMany, generateText, isStepCount, streamText, tool } from "ai";
import { BASE, BUSY, Bee, CHAT, QUESTION, SYSTEM, Weather, crowd, refused } from "./checks.js";

const settings = {
  name: "rbee",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
};
const rbee = createOpenAICompatible(settings);
const ask = { model: rbee(CHAT), maxRetries: 0, temperature: 0 };
const sky = { ...ask, system: SYSTEM, prompt: QUESTION };

async function text() {
  const whole = await generateText({ ...sky, maxOutputTokens: 12 });
  assert.match(whole.text, /^The sky/);
  assert.equal(whole.finishReason, "length");
  assert.equal(whole.usage.outputTokens, 12);
  assert.equal(whole.usage.totalTokens, whole.usage.inputTokens + 12);
  assert.equal(whole.response.modelId, CHAT);
  assert.ok(whole.response.headers["x-request-id"]);
  assert.deepEqual(whole.warnings, []);

  const stream = streamText({ ...sky, maxOutputTokens: 12 });
  const parts = [];
  for await (const part of stream.textStream) parts.push(part);
  assert.ok(parts.length > 1);
  assert.equal(parts.join(""), whole.text);
  assert.equal(await stream.finishReason, "length");
  assert.equal((await stream.usage).totalTokens, whole.usage.totalTokens);

  const stopSequences = [whole.text.slice(8, 13)];
  const stopped = await generateText({ ...sky, stopSequences });
  assert.equal(stopped.finishReason, "stop");
  assert.equal(stopped.text, whole.text.slice(0, whole.text.indexOf(stopSequences[0])));

  const model = rbee.completionModel(BASE);
  const completed = await generateText({ ...ask, model, prompt: "The capital of France is", maxOutputTokens: 6 });
  assert.equal(completed.usage.outputTokens, 6);
  assert.ok(completed.text);
}

async function tools() {
  const asked = [];
  const execute = (arguments_) => (asked.push(Weather.parse(arguments_)), "sun");
  const description = "Tells the weather of a city.";
  const tools = { weather: tool({ description, inputSchema: Weather, strict: true, execute }) };
  // The SDK's own loop: the model calls, the function answers, the model says something.
  const prepareStep = ({ stepNumber }) => (stepNumber === 0 ? {} : { toolChoice: "none" });
  const one = { rbee: { parallel_tool_calls: false } };
  const loop = {
    ...ask, prompt: "Weather in Rome?", tools, toolChoice: "required", providerOptions: one, prepareStep,
    stopWhen: isStepCount(2), maxOutputTokens: 60,
  };
  const whole = await generateText(loop);
  const [called, told] = whole.steps;
  assert.equal(called.finishReason, "tool-calls");
  assert.deepEqual(called.toolCalls.map(({ toolName }) => toolName), ["weather"]);
  assert.deepEqual(called.toolResults.map(({ output }) => output), ["sun"]);
  assert.deepEqual(called.toolCalls[0].input, asked[0]);
  assert.ok(told.text);

  const stream = streamText(loop);
  const parts = [];
  for await (const part of stream.fullStream) {
    assert.notEqual(part.type, "error", part.error);
    if (part.type === "tool-input-delta") parts.push(part.delta);
  }
  assert.ok(parts.length > 1);
  assert.deepEqual(JSON.parse(parts.join("")), asked[1]);
  assert.deepEqual(asked[1], asked[0]);
  assert.equal(await stream.text, told.text);
}

async function forms() {
  const describe = { ...ask, prompt: "Describe a bee.", output: Output.object({ schema: Bee }) };
  const whole = await generateText(describe);
  Bee.parse(whole.output);
  const stream = streamText(describe);
  const parts = [];
  for await (const part of stream.partialOutputStream) parts.push(part);
  assert.ok(parts.length > 1);
  assert.deepEqual(parts.at(-1), whole.output);
}

async function embeddings() {
  const model = rbee.embeddingModel(CHAT);
  const several = await embedMany({ model, values: ["a bee", "a cee"], maxRetries: 0 });
  assert.notDeepEqual(several.embeddings[0], several.embeddings[1]);
  assert.ok(several.usage.tokens > 2);
  for (const vector of several.embeddings) assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-5);
  assert.deepEqual((await embed({ model, value: "a bee", maxRetries: 0 })).embedding, several.embeddings[0]);
}

async function errors() {
  const generate = (more) => generateText({ ...ask, prompt: "Hello", ...more });
  const missing = { statusCode: 404, isRetryable: false };
  const unknown = await refused(APICallError, missing, generate({ model: rbee("nope") }));
  assert.equal(unknown.data.error.code, "model_not_found");
  const invalid = await refused(APICallError, { statusCode: 400, isRetryable: false }, generate({ temperature: 9 }));
  assert.equal(invalid.data.error.param, "temperature");
  const stranger = createOpenAICompatible({ ...settings, apiKey: "not-one-of-the-keys" });
  await refused(APICallError, { statusCode: 401, isRetryable: false }, generate({ model: stranger(CHAT) }));

  const read = (error) => [error.statusCode, error.responseHeaders["retry-after"]];
  const errors = await crowd(() => generate({ model: rbee(BUSY) }), read);
  for (const error of errors.values()) assert.ok(APICallError.isInstance(error) && error.isRetryable, error);
}

await text();
await tools();
await forms();
await embeddings();
await errors();
