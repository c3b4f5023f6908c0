// OpenClaw's provider for Ollama, as its package ships it: discovery, native chat, embeddings, and
// the command line. Its source is extensions/ollama/src in github.com/openclaw/openclaw.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { isContextOverflow } from "@openclaw/ai/internal/runtime";
import { ENDLESS, gather, metric, MODEL, STORY, Suite, untilIdle, url } from "./harness.mjs";

// The package names no exports for its extensions, but keeps these two files for other packages.
const extension = new URL("./node_modules/openclaw/dist/extensions/ollama/", import.meta.url);
const { fetchOllamaModels, enrichOllamaModelsWithContext, buildOllamaProvider } = await import(
  new URL("api.js", extension)
);
const { createOllamaEmbeddingProvider, createOllamaStreamFn } = await import(new URL("runtime-api.js", extension));

const suite = new Suite("openclaw");
const model = {
  id: `${MODEL}:latest`,
  name: MODEL,
  api: "ollama",
  provider: "ollama",
  baseUrl: url,
  reasoning: false,
  input: ["text"],
  contextWindow: 2048,
  maxTokens: 512,
  cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 },
};
const weather = {
  name: "get_weather",
  description: "The weather of a town",
  parameters: { type: "object", properties: { town: { type: "string" } }, required: ["town"] },
};
const streamFn = createOllamaStreamFn(url);

const user = (text) => ({ role: "user", content: [{ type: "text", text }], timestamp: Date.now() });

// Asks as the agent does. Returns the events and the message of the last one.
async function ask(context, options = {}) {
  const events = await gather(await streamFn(model, context, { temperature: 0, maxTokens: 16, ...options }));
  const last = events.at(-1);
  return { events, message: last.type === "done" ? last.message : last.error };
}

suite.check("models are discovered with context and capabilities", async () => {
  const { reachable, models } = await fetchOllamaModels(url);
  assert.ok(reachable);
  const enriched = await enrichOllamaModelsWithContext(url, models);
  const demo = enriched.find((found) => found.name === model.id);
  assert.equal(demo.contextWindow, 2048);
  assert.deepEqual(demo.capabilities, ["completion", "tools"]);
  const provider = await buildOllamaProvider(url);
  const built = provider.models.find((found) => found.id === model.id);
  assert.equal(built.reasoning, false);
  assert.deepEqual(built.input, ["text"]);
});

suite.check("an answer is streamed, with usage", async () => {
  const { events, message } = await ask({ systemPrompt: "You are a poet.", messages: [user("Tell me of a fox.")] });
  const deltas = events.filter((event) => event.type === "text_delta").map((event) => event.delta);
  assert.equal(message.errorMessage, undefined);
  assert.ok(deltas.length > 3);
  assert.equal(message.content[0].text, deltas.join(""));
  assert.ok(["stop", "length"].includes(message.stopReason));
  assert.ok(message.usage.output > 0 && message.usage.output <= 16 && message.usage.totalTokens > 20);
});

suite.check("tools are sent, and a call's result goes back", async () => {
  const question = user("How is the weather in Rome?");
  const bare = await ask({ messages: [question] });
  const asked = await ask({ messages: [question], tools: [weather] });
  const total = (answer) => answer.message.usage.totalTokens - answer.message.usage.output;
  assert.ok(total(asked) > total(bare) + 30, JSON.stringify(asked.message));
  const call = { type: "toolCall", id: "call-1", name: "get_weather", arguments: { town: "Rome" } };
  const messages = [
    question,
    { ...asked.message, content: [call], stopReason: "toolUse" },
    {
      role: "toolResult",
      toolCallId: "call-1",
      toolName: "get_weather",
      content: [{ type: "text", text: "22 degrees, no clouds at all" }],
      isError: false,
      timestamp: Date.now(),
    },
  ];
  const answer = await ask({ messages, tools: [weather] });
  assert.equal(answer.message.errorMessage, undefined);
  assert.ok(total(answer) > total(asked) + 15);
});

suite.check("a follow-up tells what was read from the cache", async () => {
  const systemPrompt = `The fox of OpenClaw. ${STORY.repeat(5)}`;
  const messages = [user("Tell me how it goes on.")];
  const first = await ask({ systemPrompt, messages });
  messages.push(first.message, user("How does it end?"));
  const second = await ask({ systemPrompt, messages });
  const known = first.message.usage.totalTokens - first.message.usage.output;
  assert.ok(known > 256 && second.message.usage.cacheRead >= known, JSON.stringify(second.message.usage));
});

suite.check("a prompt beyond the context is known as such, so that it compacts", async () => {
  const { message } = await ask({ messages: [user(STORY.repeat(60))] });
  assert.equal(message.stopReason, "error");
  assert.match(message.errorMessage, /^400 /);
  assert.ok(isContextOverflow(message, model.contextWindow), message.errorMessage);
});

suite.check("a schema for the answer is followed", async () => {
  const responseFormat = {
    type: "json_schema",
    json_schema: {
      name: "animal",
      schema: { type: "object", properties: { kind: { enum: ["fox", "bear"] } }, required: ["kind"] },
    },
  };
  const { message } = await ask({ messages: [user("Describe a fox.")] }, { responseFormat, maxTokens: 200 });
  assert.ok(["fox", "bear"].includes(JSON.parse(message.content[0].text).kind), message.content[0].text);
});

suite.check("an aborted answer is no longer computed", async () => {
  const controller = new AbortController();
  const prompt = { messages: [user(STORY)] };
  const responseFormat = { type: "json_schema", json_schema: { name: "endless", schema: ENDLESS } };
  const stream = await streamFn(model, prompt, { responseFormat, signal: controller.signal });
  let count = 0;
  let last;
  for await (const event of stream) {
    last = event;
    if (event.type === "text_delta" && ++count === 2) {
      assert.equal(await metric("hypura_answers_active"), 1);
      controller.abort();
    }
  }
  assert.equal(last.type, "error");
  await untilIdle();
});

suite.check("its memory embeds texts, longer ones too", async () => {
  const config = { models: { providers: { ollama: { baseUrl: url, apiKey: "ollama-local", models: [] } } } };
  const made = await createOllamaEmbeddingProvider({ config, provider: "ollama", model: MODEL });
  const provider = made.provider ?? made;
  const vectors = await provider.embedBatch(["a fox", STORY.repeat(4)]);
  assert.deepEqual(vectors.map((vector) => vector.length), [256, 256]);
});

suite.check("openclaw infer model run", async () => {
  const folder = await mkdtemp(join(tmpdir(), "openclaw-"));
  const config = join(folder, "openclaw.json");
  const ollama = { baseUrl: url, apiKey: "ollama-local", api: "ollama", models: [] };
  await writeFile(config, JSON.stringify({ models: { providers: { ollama } } }));
  const cli = new URL("./node_modules/openclaw/openclaw.mjs", import.meta.url).pathname;
  const ask = ["infer", "model", "run", "--local", "--model", `ollama/${model.id}`, "--prompt", "Tell me of a fox.", "--json"];
  try {
    const env = { ...process.env, HOME: folder, OPENCLAW_STATE_DIR: folder, OPENCLAW_CONFIG_PATH: config };
    const { stdout } = await promisify(execFile)(process.execPath, [cli, ...ask], { env, timeout: 55_000 });
    const said = JSON.parse(stdout);
    assert.ok(said.ok && said.provider === "ollama" && said.outputs[0].text, stdout);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

await suite.run();
