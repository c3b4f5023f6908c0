// The official JavaScript client of Ollama.

import assert from "node:assert/strict";
import { Ollama } from "ollama";
import { ENDLESS, gather, metric, MODEL, STORY, Suite, untilIdle, url } from "./harness.mjs";

const suite = new Suite("ollama.js");
const ollama = new Ollama({ host: url });
const options = { temperature: 0, num_predict: 16 };
const messages = [{ role: "user", content: "Tell me of a fox." }];

suite.check("list, show, ps and version", async () => {
  const names = (await ollama.list()).models.map((model) => model.name);
  assert.ok(names.includes(`${MODEL}:latest`), names);
  const shown = await ollama.show({ model: MODEL });
  assert.equal(shown.model_info["qwen3moe.context_length"], 2048);
  assert.ok(shown.capabilities.includes("tools"));
  await ollama.generate({ model: MODEL, prompt: "", keep_alive: "5m" });
  assert.ok((await ollama.ps()).models.some((model) => model.name === `${MODEL}:latest`));
  assert.match((await ollama.version()).version, /^\d+\.\d+/);
});

suite.check("a streamed chat says the same as one that is not", async () => {
  const whole = await ollama.chat({ model: MODEL, messages, options });
  const parts = await gather(await ollama.chat({ model: MODEL, messages, options, stream: true }));
  assert.equal(parts.map((part) => part.message.content).join(""), whole.message.content);
  assert.ok(parts.length > 3 && parts.at(-1).done && !parts[0].done);
  assert.equal(parts.at(-1).eval_count, whole.eval_count);
});

suite.check("format=schema is followed", async () => {
  const format = {
    type: "object",
    properties: { name: { type: "string", maxLength: 20 }, kind: { enum: ["fox", "bear"] } },
    required: ["name", "kind"],
  };
  const answer = await ollama.chat({ model: MODEL, messages, format, options: { temperature: 0, num_predict: 200 } });
  const animal = JSON.parse(answer.message.content);
  assert.deepEqual(Object.keys(animal).sort(), ["kind", "name"]);
  assert.ok(["fox", "bear"].includes(animal.kind));
});

suite.check("embed gives a vector for each input", async () => {
  const { embeddings } = await ollama.embed({ model: MODEL, input: ["a fox", "the price of corn"] });
  assert.deepEqual(embeddings.map((vector) => vector.length), [256, 256]);
  assert.notDeepEqual(embeddings[0], embeddings[1]);
});

suite.check("a copy can be made and deleted", async () => {
  await ollama.copy({ source: MODEL, destination: "js-copy" });
  assert.ok((await ollama.list()).models.some((model) => model.name === "js-copy:latest"));
  await ollama.delete({ model: "js-copy" });
  assert.ok(!(await ollama.list()).models.some((model) => model.name === "js-copy:latest"));
});

suite.check("an aborted answer is no longer computed", async () => {
  const stream = await ollama.generate({
    model: MODEL,
    prompt: STORY,
    raw: true,
    stream: true,
    format: ENDLESS,
  });
  await assert.rejects(async () => {
    let count = 0;
    for await (const _ of stream) {
      if (++count === 3) {
        assert.equal(await metric("hypura_answers_active"), 1);
        stream.abort();
      }
    }
  }, { name: "AbortError" });
  await untilIdle();
});

suite.check("errors have their status", async () => {
  await assert.rejects(ollama.chat({ model: "no-such-model", messages }), { status_code: 404 });
  await assert.rejects(ollama.chat({ model: MODEL, messages, options: { temperature: "hot" } }), { status_code: 400 });
});

await suite.run();
