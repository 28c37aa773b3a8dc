// The official OpenAI client against the cluster of OPENAI_BASE_URL. Exits with an error if anything is off.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { BASE, BUSY, Bee, CHAT, QUESTION, SYSTEM, Weather, crowd, refused } from "./checks.js";

const client = new OpenAI({ maxRetries: 0 });
const messages = [
  { role: "system", content: SYSTEM },
  { role: "user", content: [{ type: "text", text: QUESTION }] },
];
const hello = [{ role: "user", content: "Hello" }];

async function all(stream) {
  const items = [];
  for await (const item of await stream) items.push(item);
  return items;
}

async function models() {
  const ids = (await all(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes(CHAT) && ids.includes(BASE) && ids.includes(BUSY), ids.join());
  assert.equal((await client.models.retrieve(CHAT)).object, "model");
}

async function chat() {
  const ask = { model: CHAT, messages, temperature: 0, max_completion_tokens: 12 };
  const whole = await client.chat.completions.create(ask);
  const [choice] = whole.choices;
  assert.equal(choice.message.role, "assistant");
  assert.match(choice.message.content, /^The sky/);
  assert.equal(choice.finish_reason, "length");
  assert.equal(whole.usage.completion_tokens, 12);
  assert.ok(whole._request_id);

  const chunks = await all(
    client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }),
  );
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), choice.message.content);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.at(-2).choices[0].finish_reason, "length");
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens);

  const stop = choice.message.content.slice(8, 13);
  const runner = client.chat.completions.stream({ model: CHAT, messages, temperature: 0, stop });
  const final = (await runner.finalChatCompletion()).choices[0];
  assert.equal(final.finish_reason, "stop");
  assert.equal(final.message.content, choice.message.content.slice(0, choice.message.content.indexOf(stop)));

  const asked = { model: CHAT, messages: hello, seed: 1, temperature: 1, n: 2, max_tokens: 8 };
  const told = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
  assert.deepEqual(told.choices.map(({ index }) => index), [0, 1]);
  for (const { logprobs, message } of told.choices) {
    const bytes = logprobs.content.flatMap((token) => token.bytes);
    assert.equal(Buffer.from(bytes).toString(), message.content);
    assert.ok(logprobs.content.every((token) => token.top_logprobs.length === 2 && token.logprob <= 0));
  }

  // Who leaves a stream leaves no slot taken: more of them leave here than the worker has slots.
  for (let left = 0; left < 10; left += 1) {
    const stream = await client.chat.completions.create({ model: CHAT, messages, stream: true });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  }
}

async function completions() {
  const ask = { model: BASE, prompt: "The capital of France is", temperature: 0, max_tokens: 6 };
  const whole = await client.completions.create(ask);
  assert.match(whole.choices[0].text, /^ the capital/);
  assert.equal(whole.choices[0].finish_reason, "length");
  assert.equal(whole.usage.completion_tokens, 6);
  const chunks = await all(client.completions.create({ ...ask, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
}

async function forms() {
  const ask = { model: CHAT, messages: [{ role: "user", content: "Describe a bee." }], temperature: 0 };
  const response_format = zodResponseFormat(Bee, "bee");
  const { message } = (await client.chat.completions.parse({ ...ask, response_format })).choices[0];
  Bee.parse(message.parsed);
  const runner = client.chat.completions.stream({ ...ask, response_format });
  assert.deepEqual((await runner.finalChatCompletion()).choices[0].message.parsed, message.parsed);
}

async function tools() {
  const tool = zodFunction({ name: "weather", description: "Tells the weather of a city.", parameters: Weather });
  const ask = {
    model: CHAT, messages: [{ role: "user", content: "Weather in Rome?" }], temperature: 0,
    tools: [tool], tool_choice: "required", parallel_tool_calls: false,
  };
  const called = (await client.chat.completions.parse(ask)).choices[0];
  assert.equal(called.finish_reason, "tool_calls");
  assert.equal(called.message.content, null);
  const [call] = called.message.tool_calls;
  assert.equal(call.function.name, "weather");
  Weather.parse(call.function.parsed_arguments);

  const runner = client.chat.completions.stream(ask);
  const parts = [];
  runner.on("tool_calls.function.arguments.delta", (event) => parts.push(event.arguments_delta));
  const streamed = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0];
  assert.ok(parts.length > 1);
  assert.equal(parts.join(""), call.function.arguments);
  assert.deepEqual(streamed.function.parsed_arguments, call.function.parsed_arguments);

  // The client's own loop: it calls the function, sends the result back and asks again.
  const asked = [];
  const loop = client.chat.completions.runTools({
    ...ask, tool_choice: { type: "function", function: { name: "weather" } }, max_tokens: 60,
    tools: [{
      type: "function",
      function: {
        name: "weather", description: "Tells the weather.", parameters: tool.function.parameters, strict: true,
        parse: JSON.parse,
        function: (weather) => (asked.push(Weather.parse(weather)), "sun"),
      },
    }],
  }, { maxChatCompletions: 2 });
  await loop.done();
  assert.equal(asked.length, 1);
  assert.deepEqual(loop.messages.slice(0, 3).map(({ role }) => role), ["user", "assistant", "tool"]);
}

async function responses() {
  const ask = { model: CHAT, instructions: SYSTEM, input: QUESTION, temperature: 0, max_output_tokens: 12 };
  const same = await client.chat.completions.create({ model: CHAT, messages, temperature: 0, max_tokens: 12 });
  const cut = await client.responses.create(ask);
  assert.equal(cut.status, "incomplete");
  assert.equal(cut.incomplete_details.reason, "max_output_tokens");
  assert.equal(cut.output_text, same.choices[0].message.content);
  assert.equal(cut.usage.output_tokens, 12);

  const events = await all(client.responses.create({ ...ask, stream: true }));
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(text.join(""), cut.output_text);
  assert.equal(events[0].type, "response.created");
  assert.equal(events.at(-1).type, "response.incomplete");

  const text_format = { format: zodTextFormat(Bee, "bee") };
  const parsing = { model: CHAT, input: "Describe a bee.", temperature: 0, text: text_format };
  const parsed = (await client.responses.parse(parsing)).output_parsed;
  Bee.parse(parsed);
  assert.deepEqual((await client.responses.stream(parsing).finalResponse()).output_parsed, parsed);

  const calling = {
    model: CHAT, input: [{ role: "user", content: "Weather in Rome?" }], temperature: 0, tool_choice: "required",
    tools: [zodResponsesFunction({ name: "weather", parameters: Weather })], parallel_tool_calls: false,
  };
  const called = await client.responses.parse(calling);
  const [call] = called.output;
  assert.equal(call.type, "function_call");
  Weather.parse(call.parsed_arguments);
  const result = { type: "function_call_output", call_id: call.call_id, output: "sun" };
  const told = await client.responses.create({
    ...calling, input: [...calling.input, ...called.output, result], tool_choice: "none", max_output_tokens: 8,
  });
  assert.ok(told.output_text);

  const previous = client.responses.create({ ...ask, previous_response_id: "resp_1" });
  await refused(OpenAI.BadRequestError, { param: "previous_response_id" }, previous);
}

async function embeddings() {
  const ask = { model: CHAT, input: ["a bee", "a cee"] };
  const vectors = (answer) => answer.data.map(({ embedding }) => embedding);
  // Unless told otherwise, the client asks for base64 and decodes it.
  const usual = await client.embeddings.create(ask);
  const floats = await client.embeddings.create({ ...ask, encoding_format: "float" });
  assert.deepEqual(vectors(usual), vectors(floats).map((vector) => vector.map(Math.fround)));
  for (const vector of vectors(floats)) assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-5);
  assert.notDeepEqual(vectors(floats)[0], vectors(floats)[1]);
  assert.equal(usual.usage.prompt_tokens, usual.usage.total_tokens);
}

async function errors() {
  const create = (more) => client.chat.completions.create({ model: CHAT, messages: hello, ...more });
  const unknown = { status: 404, code: "model_not_found", param: "model" };
  const said = await refused(OpenAI.NotFoundError, unknown, create({ model: "nope" }));
  assert.ok(said.message.includes(CHAT) && said.requestID, said);
  const invalid = { status: 400, param: "temperature", type: "invalid_request_error" };
  await refused(OpenAI.BadRequestError, invalid, create({ temperature: 9 }));
  const long = [{ role: "user", content: "word ".repeat(9000) }];
  await refused(OpenAI.BadRequestError, { code: "context_length_exceeded" }, create({ messages: long }));
  const stranger = new OpenAI({ apiKey: "not-one-of-the-keys", maxRetries: 0 });
  await refused(OpenAI.AuthenticationError, { status: 401, code: "invalid_api_key" }, stranger.models.list());

  const read = (error) => [error.status, error.headers.get("retry-after")];
  const errors = await crowd(() => create({ model: BUSY }), read);
  assert.ok(errors.get(429) instanceof OpenAI.RateLimitError, errors);
  assert.equal(errors.get(429).type, "rate_limit_error");
  assert.ok(errors.get(503) instanceof OpenAI.InternalServerError, errors);
  assert.equal(errors.get(503).code, "no_capacity");
  // A stream that waits has begun: what becomes of it stands in it.
  await refused(OpenAI.APIError, { code: "no_capacity" }, all(create({ model: BUSY, stream: true })));
}

await models();
await chat();
await completions();
await forms();
await tools();
await embeddings();
await errors();
await responses();
