// Checks in Node, one after another, each bounded in time, a line for each. main.py counts the lines.

import assert from "node:assert/strict";

export const MODEL = "demo-moe-54m-q4_k_m";
export const STORY =
  "Once upon a time there was a little fox who lived at the edge of a great dark wood with his " +
  "mother and three brothers. Every morning he went down to the brook to drink, and every " +
  "evening he came home by the old stone bridge, where the miller kept his geese. ";

// An answer that has to go on for long: the grammar lets it end no sooner.
export const ENDLESS = { type: "array", items: { enum: ["the fox"] }, minItems: 400 };

const CHECK_MS = 60_000;
const IDLE_MS = 10_000;

// Where the server is; main.py says it.
export const url = process.env.HYPURA_TEST_URL;

export class Suite {
  constructor(title) {
    this.title = title;
    this.checks = [];
  }

  // Registers an asynchronous function that fails by any exception.
  check(name, body) {
    this.checks.push([name, body]);
  }

  // Runs all and ends the process: a client that hangs must not keep it.
  async run() {
    let failed = 0;
    for (const [name, body] of this.checks) {
      const start = performance.now();
      const error = await outcome(body);
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      const line = `${this.title}: ${name} (${seconds} s)`;
      failed += error ? 1 : 0;
      console.log(error ? `FAILED ${line}: ${describe(error)}` : `ok     ${line}`);
    }
    process.exit(failed > 0 ? 1 : 0);
  }
}

async function outcome(body) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${CHECK_MS} ms`)), CHECK_MS);
  });
  try {
    await Promise.race([body(), late]);
    return null;
  } catch (error) {
    return error;
  } finally {
    clearTimeout(timer);
  }
}

function describe(error) {
  const place = String(error?.stack).match(/with_\w+\.mjs:\d+/)?.[0] ?? "";
  return `${error?.name}: ${String(error?.message ?? error).replaceAll("\n", " ").slice(0, 600)} [${place}]`;
}

// The sum of a metric's series.
export async function metric(name) {
  const text = await (await fetch(`${url}/metrics`)).text();
  const values = [...text.matchAll(new RegExp(`^${name}(?:{.*})? (\\S+)$`, "gm"))];
  assert.ok(values.length > 0, `there is no metric ${name}`);
  return values.reduce((sum, value) => sum + Number(value[1]), 0);
}

// Waits until no model answers and no one waits for one.
export async function untilIdle() {
  const until = performance.now() + IDLE_MS;
  while ((await metric("hypura_answers_active")) + (await metric("hypura_answers_waiting")) > 0) {
    assert.ok(performance.now() < until, `the server still computes after ${IDLE_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export async function gather(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}
