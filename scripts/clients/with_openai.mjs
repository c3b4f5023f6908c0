// The official JavaScript client of OpenAI.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { ENDLESS, gather, metric, MODEL, STORY, Suite, untilIdle, url } from "./harness.mjs";

const suite = new Suite("openai.js");
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me of a fox." }];
const greedy = { model: MODEL, temperature: 0, max_tokens: 16 };
const town = { type: "object", properties: { town: { type: "string", maxLength: 20 } }, required: ["town"] };

suite.check("models are listed", async () => {
  const ids = (await gather(await openai.models.list())).map((model) => model.id.replace(/:latest$/, ""));
  assert.ok(ids.includes(MODEL), ids);
});

suite.check("a streamed chat says the same as one that is not", async () => {
  const whole = await openai.chat.completions.create({ messages, ...greedy });
  const chunks = await gather(await openai.chat.completions.create({ messages, stream: true, ...greedy }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  assert.ok(chunks.length > 3);
  const helper = openai.chat.completions.stream({ messages, ...greedy });
  assert.equal(await helper.finalContent(), text);
});

suite.check("runTools runs the function that was called", async () => {
  const towns = [];
  const runner = openai.chat.completions.runTools(
    {
      ...greedy,
      max_tokens: 200,
      messages: [{ role: "user", content: "How is the weather in Rome?" }],
      parallel_tool_calls: false,
      tool_choice: { type: "function", function: { name: "get_weather" } },
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            description: "The weather of a town",
            parameters: town,
            parse: JSON.parse,
            function: (call) => {
              towns.push(call.town);
              return "22 degrees";
            },
          },
        },
      ],
    },
    { maxChatCompletions: 2 },
  );
  await runner.done().catch(() => {});
  assert.ok(towns.length > 0 && towns.every((name) => typeof name === "string"), JSON.stringify(runner.messages));
});

suite.check("the responses API answers and streams", async () => {
  const ask = { model: MODEL, input: "Tell me of a fox.", temperature: 0, max_output_tokens: 24 };
  const whole = await openai.responses.create(ask);
  const events = await gather(await openai.responses.create({ ...ask, stream: true }));
  const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.ok(whole.output_text);
  assert.equal(text.join(""), whole.output_text);
});

suite.check("embeddings, decoded by the client", async () => {
  const { data } = await openai.embeddings.create({ model: MODEL, input: ["a fox", "the price of corn"] });
  const plain = await openai.embeddings.create({ model: MODEL, input: "a fox", encoding_format: "float" });
  assert.deepEqual(data.map((item) => item.embedding.length), [256, 256]);
  data[0].embedding.forEach((x, i) => assert.ok(Math.abs(x - plain.data[0].embedding[i]) < 1e-3));
});

suite.check("an aborted answer is no longer computed", async () => {
  const stream = await openai.chat.completions.create({
    model: MODEL,
    messages: [{ role: "user", content: STORY }],
    response_format: { type: "json_schema", json_schema: { name: "endless", schema: ENDLESS } },
    stream: true,
  });
  let count = 0;
  for await (const _ of stream) {
    if (++count === 3) {
      assert.equal(await metric("hypura_answers_active"), 1);
      stream.controller.abort();
    }
  }
  await untilIdle();
});

suite.check("errors have their class", async () => {
  const ask = { messages, ...greedy };
  await assert.rejects(openai.chat.completions.create({ ...ask, model: "no-such-model" }), OpenAI.NotFoundError);
  await assert.rejects(openai.chat.completions.create({ ...ask, temperature: 9 }), OpenAI.BadRequestError);
});

await suite.run();
