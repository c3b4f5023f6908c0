// One loaded model: what it is, how fast it goes, which experts it uses, what it works on.

import { h, setText } from "./dom.js";
import { bytes, count, digits, isNumber, percent, seconds } from "./format.js";
import { heatmapView } from "./heatmap.js";
import { sparkline } from "./sparkline.js";

// Expiry further away than this means never.
const KEPT_S = 366 * 86400;
const SEQUENCES_MAX = 64;

export function modelView(name) {
  const facts = h("p", { className: "facts" });
  const speed = sparkline("Answers", (rate) => `${digits(rate)} tokens/s`);
  const hits = sparkline("Found in memory", percent, 1);
  const reads = sparkline("Read from the drive", (rate) => `${bytes(rate)}/s`);
  const totals = h("p", { className: "hint" });
  const experts = heatmapView();
  const sequences = h("ul", { className: "sequences" });
  const root = h(
    "section",
    { className: "part" },
    h("h2", {}, name),
    facts,
    h("div", { className: "sparks" }, speed.root, hits.root, reads.root),
    totals, experts.root, sequences,
  );

  function update(model) {
    setText(facts, factsOf(model));
    speed.push(model.rates?.decode_tokens_per_s);
    hits.push(model.rates?.hit_rate);
    reads.push(model.rates?.read_bytes_per_s);
    hits.root.hidden = reads.root.hidden = model.mode === "full-resident";
    setText(totals, totalsOf(model));
    experts.update(model.experts);
    showSequences(sequences, model);
  }

  function redraw() {
    for (const view of [speed, hits, reads, experts]) view.redraw();
  }

  return { root, update, redraw };
}

function factsOf({ architecture, mode, layout, model_bytes, memory_bytes, n_ctx, parallel, expires_at }) {
  const parts = [architecture, mode?.replaceAll("-", " "), layout && `${layout} layout`].filter(Boolean);
  if (isNumber(memory_bytes) && isNumber(model_bytes)) parts.push(`${bytes(model_bytes)} of weights in ${bytes(memory_bytes)}`);
  else if (isNumber(model_bytes)) parts.push(`${bytes(model_bytes)} of weights`);
  if (isNumber(n_ctx)) parts.push(`${count(n_ctx)} tokens of context${parallel > 1 ? `, ${count(parallel)} at a time` : ""}`);
  const left = (new Date(expires_at ?? Number.NaN).getTime() - Date.now()) / 1000;
  if (left > KEPT_S) parts.push("stays loaded");
  else if (left > 0) parts.push(`unloads in ${left < 5400 ? `${count(Math.ceil(left / 60))} min` : seconds(left)}`);
  return parts.join(" · ");
}

function totalsOf({ totals, stream }) {
  const parts = [];
  if (isNumber(totals?.generated_tokens)) parts.push(`${count(totals.generated_tokens)} tokens written`);
  if (isNumber(totals?.prompt_tokens)) parts.push(`${count(totals.prompt_tokens)} read`);
  if (totals?.reused_tokens > 0) parts.push(`${count(totals.reused_tokens)} reused`);
  const { copied_bytes, lookups, hits } = stream?.gpu ?? {};
  if (copied_bytes) parts.push(`${bytes(copied_bytes)} copied to the GPU`);
  if (lookups) parts.push(`${percent(hits / lookups)} of experts found there`);
  if (stream?.read_bytes > 0) parts.push(`${bytes(stream.read_bytes)} from the drive`);
  if (stream?.read_wait_ms > 0) parts.push(`waited ${seconds(stream.read_wait_ms / 1000)} for it`);
  return parts.length ? `Since it was loaded: ${parts.join(", ")}.` : "";
}

function showSequences(list, { sequences, n_ctx }) {
  const all = (Array.isArray(sequences) ? sequences : []).slice(0, SEQUENCES_MAX);
  list.hidden = all.length === 0;
  list.replaceChildren(
    ...all.map(({ id, state, tokens }) => {
      const meter = h("meter", { min: 0, max: n_ctx || 1, value: tokens ?? 0, ariaLabel: "Share of the context" });
      return h("li", {}, h("b", {}, `#${id ?? "?"} ${state ?? ""}`), meter, h("span", {}, `${count(tokens)} tokens`));
    }),
  );
}
