// Which experts are used, and which are in memory: a row per layer, a cell per expert.

import { crisp, h, setText } from "./dom.js";
import { count, orZero, percent } from "./format.js";

// As many as a large model has, several times over.
const CELLS_MAX = 100_000;
const CELL_MAX = 16;
const CELL_HEIGHT_MIN = 5;
// Cells of this size have a gap between them, and a line around those in memory.
const CELL_ROOMY = 6;
const FAINTEST = 0.1;

let views = 0;

export function heatmapView() {
  const canvas = h("canvas", {
    tabIndex: 0,
    role: "application",
    ariaRoleDescription: "heat map",
    ariaLabel: "Uses of experts; arrow keys read single ones",
    "aria-describedby": `experts-${(views += 1)}`,
  });
  const readout = h("p", { className: "readout", ariaLive: "polite" });
  const summary = h("p", { className: "hint", id: `experts-${views}` });
  const key = h(
    "p",
    { className: "key" },
    h("span", {}, h("i", { className: "ramp resident" }), "in memory"),
    h("span", {}, h("i", { className: "ramp" }), "on the drive"),
    h("span", {}, "stronger: used more"),
  );
  const root = h("div", { className: "experts", hidden: true }, h("h3", {}, "Experts, layer by layer"), canvas, readout, key, summary);
  let grid = null;
  let cursor = null;

  function update(experts) {
    grid = read(experts);
    root.hidden = grid === null;
    if (!grid) return;
    if (cursor) cursor = clamp(cursor, grid);
    setText(summary, summaryOf(grid));
    // A count that grows under the cursor is not read out each second.
    redraw(document.activeElement !== canvas);
  }

  function redraw(reads = true) {
    if (!grid || !root.clientWidth) return;
    draw(canvas, grid, cursor, root.clientWidth);
    if (reads) setText(readout, cursor ? cellText(grid, cursor) : "Point at a cell, or use the arrow keys.");
  }

  function move(next) {
    cursor = next && clamp(next, grid);
    redraw();
  }

  canvas.addEventListener("pointermove", (event) => {
    const place = canvas.getBoundingClientRect();
    const share = [(event.clientY - place.top) / place.height, (event.clientX - place.left) / place.width];
    move({ layer: Math.floor(share[0] * grid.layers), expert: Math.floor(share[1] * grid.experts) });
  });
  canvas.addEventListener("pointerleave", () => move(null));
  canvas.addEventListener("blur", () => move(null));
  canvas.addEventListener("focus", () => cursor ?? (canvas.matches(":focus-visible") && move({ layer: 0, expert: 0 })));
  canvas.addEventListener("keydown", (event) => {
    const at = cursor ?? { layer: 0, expert: 0 };
    const next = {
      ArrowLeft: { ...at, expert: at.expert - 1 },
      ArrowRight: { ...at, expert: at.expert + 1 },
      ArrowUp: { ...at, layer: at.layer - 1 },
      ArrowDown: { ...at, layer: at.layer + 1 },
      Home: { ...at, expert: 0 },
      End: { ...at, expert: grid.experts - 1 },
    }[event.key];
    if (!next) return;
    event.preventDefault();
    move(next);
  });

  return { root, update, redraw };
}

const clamp = ({ layer, expert }, grid) => ({
  layer: Math.min(Math.max(layer, 0), grid.layers - 1),
  expert: Math.min(Math.max(expert, 0), grid.experts - 1),
});

// { layers, experts, cells: [{ layer, expert, uses, resident }] } row by row, or null without experts.
function read(experts) {
  const rows = Array.isArray(experts?.uses) ? experts.uses : [];
  const grid = { layers: experts?.layers ?? rows.length, experts: experts?.experts ?? rows[0]?.length };
  if (!(grid.layers > 0 && grid.experts > 0)) return null;
  const bits = (experts.resident ?? []).map(bytesOf);
  grid.cells = Array.from({ length: Math.min(grid.layers * grid.experts, CELLS_MAX) }, (_, at) => {
    const [layer, expert] = [Math.floor(at / grid.experts), at % grid.experts];
    const resident = ((bits[layer]?.[expert >> 3] ?? 0) >> (expert & 7)) & 1;
    return { layer, expert, uses: orZero(rows[layer]?.[expert]), resident };
  });
  return grid;
}

// Bit `e` of a row is bit `e % 8` of its byte `e / 8`.
function bytesOf(hex) {
  return Array.from(String(hex).match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

function summaryOf({ cells, layers, experts }) {
  const resident = cells.filter((cell) => cell.resident);
  const total = cells.reduce((sum, cell) => sum + cell.uses, 0);
  const parts = [`${count(layers)} layers of ${count(experts)} experts; ${count(resident.length)} of ${count(cells.length)} in memory`];
  if (total > 0) {
    const served = resident.reduce((sum, cell) => sum + cell.uses, 0);
    const busiest = cells.reduce((best, cell) => (cell.uses > best.uses ? cell : best));
    parts.push(`these have ${percent(served / total)} of all uses`);
    parts.push(`the busiest is ${busiest.expert} of layer ${busiest.layer}`);
  }
  return `${parts.join("; ")}.`;
}

function cellText({ cells, experts }, cursor) {
  const cell = cells[cursor.layer * experts + cursor.expert];
  const where = cell.resident ? "in memory" : "on the drive";
  return `Layer ${cell.layer}, expert ${cell.expert}: ${count(cell.uses)} uses, ${where}`;
}

// Cells are whole pixels wide, so that the grid is even; the canvas ends with its last cell.
function draw(canvas, grid, cursor, room) {
  const scale = devicePixelRatio || 1;
  const cell = Math.max(1, Math.min(Math.floor((room * scale) / grid.experts), CELL_MAX * scale));
  const tall = Math.round(Math.max(cell, CELL_HEIGHT_MIN * scale));
  const [width, height] = [(cell * grid.experts) / scale, (tall * grid.layers) / scale];
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const { context } = crisp(canvas, width, height);
  const style = getComputedStyle(canvas);
  const colours = [style.borderBottomColor, style.color];
  const ink = style.outlineColor;
  const gap = cell >= CELL_ROOMY * scale ? Math.round(scale) : 0;
  const most = grid.cells.reduce((top, one) => Math.max(top, one.uses), 1);
  for (const { layer, expert, uses, resident } of grid.cells) {
    const box = [expert * cell, layer * tall, cell - gap, tall - (gap || (tall > 4 ? 1 : 0))];
    context.fillStyle = colours[resident];
    context.globalAlpha = FAINTEST + (1 - FAINTEST) * Math.sqrt(uses / most);
    context.fillRect(...box);
    if (resident && gap) frame(context, box, colours[1], Math.round(scale));
  }
  context.globalAlpha = 1;
  if (cursor) {
    const around = gap ? 0 : Math.round(2 * scale);
    const [x, y] = [cursor.expert * cell - around, cursor.layer * tall - around];
    frame(context, [x, y, cell - gap + 2 * around, tall - gap + 2 * around], ink, Math.round(2 * scale));
  }
}

function frame(context, [x, y, width, height], colour, line) {
  context.globalAlpha = 1;
  context.strokeStyle = colour;
  context.lineWidth = line;
  context.strokeRect(x + line / 2, y + line / 2, width - line, height - line);
}
