// A small curve of the last two minutes (of less, while there is less), its latest value and its
// peak in words.

import { crisp, h, setText } from "./dom.js";
import { isNumber, seconds } from "./format.js";

const WINDOW_MS = 120_000;
const WINDOW_MS_MIN = 20_000;
// A sample per second, and some slack.
const SAMPLES_MAX = 150;
// A gap in time this long is a gap in the curve.
const GAP_MS = 5000;

/** `format` makes words of a value; `top` fixes the upper end of the scale. */
export function sparkline(name, format, top) {
  const value = h("b");
  const canvas = h("canvas", { ariaHidden: "true" });
  const peak = h("small");
  const root = h("div", { className: "spark" }, h("span", {}, name), value, canvas, peak);
  let samples = [];

  function push(sample) {
    const now = Date.now();
    samples.push({ at: now, value: isNumber(sample) ? sample : null });
    samples = samples.filter(({ at }) => now - at <= WINDOW_MS).slice(-SAMPLES_MAX);
    setText(value, format(samples.at(-1).value));
    redraw();
  }

  function redraw() {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !samples.length) return;
    const highest = Math.max(0, ...samples.map((sample) => sample.value ?? 0));
    const { context, scale, pixelsX, pixelsY } = crisp(canvas, width, height);
    const newest = samples.at(-1).at;
    const span = Math.max(WINDOW_MS_MIN, newest - samples[0].at);
    setText(peak, top ? `last ${seconds(Math.round(span / 1000))}` : `peak ${format(highest)}`);
    const line = 1.5 * scale;
    const x = (at) => pixelsX - line - ((newest - at) / span) * (pixelsX - 2 * line);
    const y = (value) => pixelsY - line - (value / (top ?? (highest || 1))) * (pixelsY - 2 * line);
    const colour = getComputedStyle(canvas).color;
    for (const run of runs(samples)) draw(context, run.map((one) => [x(one.at), y(one.value)]), colour, line, pixelsY);
  }

  return { root, push, redraw };
}

// Samples without gaps between them.
function runs(samples) {
  const all = [];
  let before = null;
  for (const sample of samples) {
    if (sample.value === null) before = null;
    else {
      if (!before || sample.at - before.at > GAP_MS) all.push([]);
      all.at(-1).push(sample);
      before = sample;
    }
  }
  return all;
}

function draw(context, points, colour, line, bottom) {
  context.fillStyle = context.strokeStyle = colour;
  context.lineWidth = line;
  context.lineJoin = "round";
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
  context.lineTo(points.at(-1)[0], bottom);
  context.lineTo(points[0][0], bottom);
  context.globalAlpha = 0.14;
  context.fill();
  context.globalAlpha = 1;
  context.beginPath();
  context.arc(...points.at(-1), line * 1.4, 0, 7);
  context.fill();
}
