// Where the bytes are: a bar for each place, against what it may hold, and their numbers.

import { h, setText } from "./dom.js";
import { bytes, isNumber, orZero } from "./format.js";

// What is in each place: the field of `tiers`, the class of its colour, and its name.
const PARTS = { weights: "Weights that stay", slots: "Slots that stream", kv: "Attention state", buffers: "Buffers" };
const inside = (place) => Object.entries(PARTS).map(([part, name]) => [`${place}_${part}_bytes`, part, name]);
const DRIVE = [
  ["drive_weights_bytes", "cold-weights", "Weights that stream"],
  ["kv_cold_bytes", "cold-kv", "Kept state"],
];

export function memoryView() {
  const vram = barView("Graphics memory");
  const memory = barView("Memory");
  const drive = barView("Drive");
  const root = h("section", { className: "part" }, h("h2", {}, "Where the bytes are"), vram.root, memory.root, drive.root);

  function update(status, models) {
    const sum = (field) => models.reduce((total, model) => total + orZero(model.tiers?.[field]), 0);
    const parts = (rows) => rows.map(([field, colour, name]) => ({ colour, name, bytes: sum(field) }));

    vram.update(...inMemory(parts(inside("vram")), { budget_bytes: status.vram_budget_bytes }));
    memory.update(...inMemory(parts(inside("ram")), status));

    const kept = parts(DRIVE);
    const most = Math.max(0, ...models.map((model) => orZero(model.tiers?.kv_cold_bytes_max)));
    if (most) kept[1].note = `of ${bytes(most)}`;
    drive.update(kept);
  }

  return { root, update };
}

// The parts of the process, what else it holds, and what it may: the width of the bar.
function inMemory(parts, { budget_bytes, rss_bytes }) {
  const known = parts.reduce((total, part) => total + part.bytes, 0);
  const other = orZero(rss_bytes) - known;
  if (other > 0) parts.push({ colour: "other", name: "Other", bytes: other });
  const used = Math.max(known, orZero(rss_bytes));
  const budget = orZero(budget_bytes);
  if (!budget) return [parts];
  const free = budget - used;
  if (free > 0) parts.push({ colour: "free", name: "Free", bytes: free });
  const title = `${bytes(isNumber(rss_bytes) ? rss_bytes : known)} of a budget of ${bytes(budget)}`;
  return [parts, title, free < 0 ? budget / used : undefined];
}

// A stacked bar over its legend. The legend says in words all that the bar shows.
function barView(name) {
  const total = h("span");
  const bar = h("div", { className: "stack", ariaHidden: "true" });
  const limit = h("div", { className: "limit", hidden: true });
  const legend = h("dl", { className: "legend" });
  const root = h("div", { className: "place" }, h("h3", {}, name, total), bar, legend);
  bar.append(limit);
  const rows = new Map();

  // `parts` in the order of the bar; `title` in place of their sum; `limitAt` marks a share of it.
  function update(parts, title, limitAt) {
    const sum = parts.reduce((all, part) => all + part.bytes, 0);
    root.hidden = sum === 0;
    setText(total, title ?? bytes(sum));
    limit.hidden = limitAt === undefined;
    if (limitAt !== undefined) limit.style.left = `${limitAt * 100}%`;
    for (const row of rows.values()) row.hide(true);
    for (const part of parts) {
      if (!rows.has(part.name)) rows.set(part.name, rowView(part, bar, legend));
      rows.get(part.name).update(part, sum);
    }
  }

  return { root, update };
}

function rowView({ colour, name }, bar, legend) {
  const segment = h("div", { className: `segment ${colour}` });
  const value = h("dd");
  const row = h("div", {}, h("dt", {}, h("i", { className: `swatch ${colour}` }), name), value);
  bar.append(segment);
  legend.append(row);

  function hide(hidden) {
    segment.hidden = hidden;
    row.hidden = hidden;
  }

  function update(part, sum) {
    hide(part.bytes === 0);
    segment.style.width = `${(part.bytes / sum) * 100}%`;
    setText(value, part.note ? `${bytes(part.bytes)} ${part.note}` : bytes(part.bytes));
  }

  return { hide, update };
}
