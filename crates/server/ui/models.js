// Which models there are, which are loaded, and what the chosen one can do.

import { getJson, request } from "./api.js";
import { byId, h } from "./dom.js";
import { bytes } from "./format.js";
import { readValue, writeValue } from "./store.js";

const CHOSEN = "hypura.model";
const select = byId("model");
const thinkBox = byId("think-box");
const capabilities = new Map();
let drawn = "";

export function startModels() {
  byId("think").checked = readValue("hypura.think", true);
  byId("think").addEventListener("change", (event) => writeValue("hypura.think", event.target.checked));
  select.addEventListener("change", () => {
    writeValue(CHOSEN, select.value);
    showCapabilities();
  });
  return refreshModels();
}

export const chosenModel = () => select.value;

/** What `think` is in a request: undefined where the model can't. */
export function thinking() {
  return thinkBox.hidden ? undefined : byId("think").checked;
}

/** Asks the server again. Fails with an `ApiError`; the list then stays as it was. */
export async function refreshModels(ask = false) {
  const [tags, running] = await Promise.all([
    getJson("/api/tags", { ask }),
    getJson("/api/ps", { ask: false }).catch(() => ({})),
  ]);
  const loaded = new Set((running.models ?? []).map(nameOf));
  const listed = (tags.models ?? []).filter(nameOf);
  const others = listed.filter((model) => !loaded.has(nameOf(model)));
  show([...(running.models ?? []).filter(nameOf)], others);
  await showCapabilities();
}

const nameOf = (model) => model?.name ?? model?.model;

function show(loaded, others) {
  const key = JSON.stringify([loaded.map(nameOf), others.map(nameOf)]);
  if (key === drawn) return;
  drawn = key;
  const chosen = select.value || readValue(CHOSEN);
  select.replaceChildren(...group("Loaded", loaded), ...group("On this machine", others));
  if (!select.options.length) select.append(h("option", { value: "" }, "no models found"));
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
}

function group(label, models) {
  if (!models.length) return [];
  const options = models.map((model) => {
    const size = model.size > 0 ? ` · ${bytes(model.size)}` : "";
    return h("option", { value: nameOf(model) }, nameOf(model) + size);
  });
  return [h("optgroup", { label }, ...options)];
}

async function showCapabilities() {
  const model = select.value;
  if (model && !capabilities.has(model)) {
    // A model that can't be described can still answer.
    const known = await request("/api/show", { body: { model }, ask: false })
      .then((response) => response.json())
      .catch(() => null);
    if (known) capabilities.set(model, known.capabilities ?? []);
  }
  if (model === select.value) thinkBox.hidden = !(capabilities.get(model) ?? []).includes("thinking");
}
