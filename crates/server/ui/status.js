// What is going on in the server: asked once a second while the page can be seen.

import { getJson } from "./api.js";
import { byId, h, setText } from "./dom.js";
import { ago, count, isNumber, orZero, seconds } from "./format.js";
import { memoryView } from "./memory.js";
import { modelView } from "./model.js";

const PERIOD_MS = 1000;
const PERIOD_MS_MAX = 30_000;
const SESSIONS_MAX = 50;

const pulse = byId("pulse");
const notice = byId("status-notice");

export function startStatus() {
  const view = statusView(byId("status-body"));
  let timer = 0;
  let pause = PERIOD_MS;
  let asking = false;

  async function poll() {
    if (asking || document.hidden) return;
    asking = true;
    clearTimeout(timer);
    try {
      const status = await getJson("/ui/status", { ask: false });
      pause = PERIOD_MS;
      view.update(status);
      trouble("");
    } catch (error) {
      pause = Math.min(pause * 2, PERIOD_MS_MAX);
      trouble(`${error.message} Asking again in ${seconds(pause / 1000)}.`);
    }
    asking = false;
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(poll, pause);
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    poll();
  });
  addEventListener("themechange", view.redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", view.redraw);
  addEventListener("resize", view.redraw);
  poll();
}

function trouble(sentence) {
  notice.hidden = !sentence;
  setText(notice, sentence);
  document.body.classList.toggle("stale", sentence !== "");
  if (sentence) setText(pulse, "no connection");
}

function statusView(parent) {
  const memory = memoryView();
  const empty = emptyView();
  const models = h("div", { id: "models" });
  const sessions = sessionsView();
  const views = new Map();
  parent.append(memory.root, empty, models, sessions.root);
  parent.hidden = true;

  function update(status) {
    parent.hidden = false;
    const loaded = Array.isArray(status.models) ? status.models.filter((model) => model?.name) : [];
    memory.update(status, loaded);
    empty.hidden = loaded.length > 0;
    for (const model of loaded) {
      if (!views.has(model.name)) {
        views.set(model.name, modelView(model.name));
        models.append(views.get(model.name).root);
      }
      views.get(model.name).update(model);
    }
    for (const [name, view] of views) {
      if (loaded.some((model) => model.name === name)) continue;
      view.root.remove();
      views.delete(name);
    }
    sessions.update(status.sessions);
    showPulse(status);
  }

  function redraw() {
    for (const view of views.values()) view.redraw();
  }

  return { update, redraw };
}

function showPulse({ version, uptime_s, requests }) {
  const active = orZero(requests?.active);
  const waiting = orZero(requests?.waiting);
  const parts = [active ? `${count(active)} active` : "idle"];
  if (waiting) parts.push(`${count(waiting)}${requests.queue_max > 0 ? ` of ${count(requests.queue_max)}` : ""} waiting`);
  if (isNumber(requests?.total)) parts.push(`${count(requests.total)} served`);
  if (isNumber(uptime_s)) parts.push(`up ${seconds(uptime_s)}`);
  setText(pulse, parts.join(" · "));
  pulse.classList.toggle("busy", active + waiting > 0);
  setText(byId("version"), version ?? "");
}

function emptyView() {
  const ask = `curl ${location.origin}/api/generate -d '{"model": "NAME"}'`;
  return h(
    "section",
    { className: "part", hidden: true },
    h("h2", {}, "No model is loaded"),
    h("p", {}, "The first message to a model loads it: choose one and write. Or ask for it without a message:"),
    h("pre", { tabIndex: 0, role: "region", ariaLabel: "Command" }, ask),
  );
}

function sessionsView() {
  const body = h("tbody");
  const more = h("p", { className: "hint", hidden: true });
  const head = h("tr", {}, ...["Name", "Model", "Tokens", "Last used"].map((name) => h("th", { scope: "col" }, name)));
  const root = h("section", { className: "part", hidden: true }, h("h2", {}, "Sessions on the drive"));
  root.append(h("table", {}, h("thead", {}, head), body), more);
  let drawn = "";

  function update(sessions) {
    const all = Array.isArray(sessions) ? sessions : [];
    root.hidden = all.length === 0;
    const rows = all.slice(0, SESSIONS_MAX).map((one) => [one.name ?? "–", one.model ?? "–", count(one.tokens), ago(one.modified)]);
    const key = JSON.stringify(rows);
    if (key === drawn) return;
    drawn = key;
    body.replaceChildren(...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell)))));
    more.hidden = all.length <= SESSIONS_MAX;
    setText(more, `and ${count(all.length - SESSIONS_MAX)} more`);
  }

  return { root, update };
}
