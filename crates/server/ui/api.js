// Requests to the server that the page came from, its key, and answers line by line.

import { byId } from "./dom.js";

const KEY = "hypura.key";
// A line holds a few tokens; one that never ends is not an answer.
const LINE_CHARS_MAX = 1_000_000;

/** A failure with a sentence for the user; `status` is the HTTP status, if there was one. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Sends `body` as JSON (POST), or asks (GET) where there is none. Where the server wants a key, the
 * user is asked for one; with `ask: false` only if that was not turned down before.
 */
export async function request(path, { body, signal, ask = true } = {}) {
  for (;;) {
    const key = readKey();
    const response = await send(path, body, signal, key);
    if (response.ok) return response;
    if (response.status !== 401) throw new ApiError(await reason(response), response.status);
    // Another request may have got a key meanwhile.
    if (readKey() === key && !((ask || !declined) && (await askForKey(key !== null)))) {
      throw new ApiError("The server wants a key, and has none.", 401);
    }
    signal?.throwIfAborted();
  }
}

export async function getJson(path, options) {
  return parse(await (await request(path, options)).text());
}

/** The values of an NDJSON body, one by one. */
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(lost);
      if (done) break;
      const whole = (rest + value).split("\n");
      rest = whole.pop();
      if (rest.length > LINE_CHARS_MAX) throw new ApiError("The server sent a line without end.");
      for (const line of whole) if (line.trim()) yield parse(line);
    }
    if (rest.trim()) yield parse(rest);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The sentence in an error of any of the three APIs. */
export function errorText(value) {
  const text = value?.error?.message ?? value?.error;
  return typeof text === "string" && text ? text : undefined;
}

async function send(path, body, signal, key) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const options = { method, headers, signal, cache: "no-store", body: body && JSON.stringify(body) };
  return fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server can't be reached.");
  });
}

function lost(error) {
  if (error.name === "AbortError") throw error;
  throw new ApiError("The connection was lost.");
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError("The server's answer can't be read as JSON.");
  }
}

async function reason(response) {
  const text = await response.text().catch(() => "");
  let said;
  try {
    said = errorText(JSON.parse(text));
  } catch {
    said = undefined;
  }
  return said ?? `The server answered ${response.status} ${response.statusText}`.trim() + ".";
}

// The key lasts as long as the tab; where storage is blocked, as long as the page.
let keyOfPage = null;

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? keyOfPage;
  } catch {
    return keyOfPage;
  }
}

function keepKey(key) {
  keyOfPage = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // `keyOfPage` has it.
  }
}

let declined = false;
let asking = null;

// True once there is a key. All requests that fail at the same time wait for one dialog.
function askForKey(refused) {
  asking ??= showKeyDialog(refused).finally(() => (asking = null));
  return asking;
}

function showKeyDialog(refused) {
  const dialog = byId("key-dialog");
  byId("key-text").textContent = refused
    ? "The server refused the key it was given."
    : "It is kept until this tab is closed, and sent to this server only.";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      declined = dialog.returnValue !== "key";
      if (!declined) keepKey(byId("key").value);
      byId("key").value = "";
      resolve(!declined);
    };
  });
}
