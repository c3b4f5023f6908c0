// The settings sheet: options of a request, remembered. Empty fields are the server's to decide.

import { attachSheet, byId } from "./dom.js";
import { readValue, writeValue } from "./store.js";

const KEY = "hypura.options";
const form = byId("options-form");
const button = byId("options-open");

export function startOptions() {
  attachSheet(button, byId("options"));
  const kept = readValue(KEY, {});
  for (const field of form.elements) if (field.name in kept) field.value = kept[field.name];
  form.addEventListener("input", changed);
  form.addEventListener("reset", () => setTimeout(changed));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    byId("options").hidePopover();
  });
  label();
}

/** `options` of a request: the fields that are filled in and valid. */
export function requestOptions() {
  const filled = [...form.elements].filter((field) => field.name && field.value && field.validity.valid);
  return Object.fromEntries(filled.map((field) => [field.name, field.valueAsNumber]));
}

function changed() {
  writeValue(KEY, requestOptions());
  label();
}

function label() {
  const set = Object.keys(requestOptions()).length;
  button.textContent = set ? `Settings (${set})` : "Settings";
}
