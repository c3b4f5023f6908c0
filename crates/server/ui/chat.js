// The chat: one conversation at a time, one answer at a time.

import { ApiError, errorText, lines, request } from "./api.js";
import { byId } from "./dom.js";
import { startLibrary } from "./library.js";
import { answerView, statsOf, userView } from "./message.js";
import { chosenModel, refreshModels, startModels, thinking } from "./models.js";
import { requestOptions, startOptions } from "./options.js";
import { conversations, newConversation, readValue, saveConversation, writeValue } from "./store.js";
import { startSpeaking } from "./speak.js";

const DRAFT = "hypura.draft";
const OPEN = "hypura.open";
const PROMPT_HEIGHT_MAX = 240;

const [prompt, system, messages, scroll, notice] = ["prompt", "system", "messages", "scroll", "notice"].map(byId);

let conversation = newConversation();
// The answer under way: { controller, view, reply }, or null.
let answering = null;
// While the last message is being changed: what was in the box before.
let draftBefore = null;

export function startChat() {
  startOptions();
  startLibrary({
    open,
    current: () => conversation.id,
    deleted(id) {
      if (id !== conversation.id) return;
      conversation.gone = true;
      open(newConversation());
    },
  });
  prompt.value = readValue(DRAFT, "");
  const last = readValue(OPEN);
  open(conversations().find((kept) => kept.id === last) ?? conversation);
  listen();
  startModels().catch((error) => tell(error.message));
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  prompt.addEventListener("input", () => {
    fit();
    if (draftBefore === null) writeValue(DRAFT, prompt.value);
  });
  document.addEventListener("keydown", (event) => {
    // Sheets and dialogs take the key for themselves.
    if (event.key !== "Escape" || document.querySelector("dialog[open], [popover]:popover-open")) return;
    if (answering) stop();
    else if (draftBefore !== null) endEdit();
  });
  byId("stop").addEventListener("click", stop);
  byId("new").addEventListener("click", () => {
    open(newConversation());
    prompt.focus();
  });
  byId("edit-cancel").addEventListener("click", endEdit);
  system.addEventListener("input", () => {
    conversation.system = system.value;
    preview();
  });
  system.addEventListener("change", () => conversation.messages.length && save());
  addEventListener("focus", () => refreshModels().catch(() => {}));
  addEventListener("pagehide", () => answering && save());
}

/** Shows a conversation; an answer under way in another one is stopped. */
function open(next) {
  stop();
  if (draftBefore !== null) endEdit();
  conversation = next;
  system.value = conversation.system ?? "";
  byId("system-box").open = false;
  tell("");
  preview();
  draw();
  fit();
  writeValue(OPEN, conversation.id);
  scroll.scrollTop = scroll.scrollHeight;
}

function draw() {
  const all = conversation.messages;
  const lastUser = all.findLastIndex((message) => message.role === "user");
  messages.replaceChildren(
    ...all.map((message, at) => {
      if (message.role === "user") return userView(message, at === lastUser ? edit : undefined);
      const view = answerView(message, at === all.length - 1 ? retry : undefined);
      view.update(null);
      return view.root;
    }),
  );
  document.body.classList.toggle("empty", all.length === 0);
}

async function send() {
  if (!chosenModel()) await findModel();
  const text = prompt.value.trim();
  if (!text || answering || !chosenModel()) return;
  if (draftBefore !== null) {
    conversation.messages.length = conversation.messages.findLastIndex((message) => message.role === "user");
  }
  conversation.messages.push({ role: "user", content: text });
  if (draftBefore !== null) endEdit();
  else setPrompt("");
  answer();
}

// There may be one by now, or a key with which to see it.
async function findModel() {
  try {
    await refreshModels(true);
    tell(chosenModel() ? "" : "There is no model to ask. Put a GGUF file where the server looks for models, and send again.");
  } catch (error) {
    tell(error.message);
  }
}

function retry() {
  if (answering) return;
  conversation.messages.pop();
  answer();
}

// Until its end has come an answer counts as stopped: that is what a closed page leaves behind.
async function answer() {
  const reply = { role: "assistant", model: chosenModel(), content: "", thinking: "", stopped: true };
  const body = requestBody();
  conversation.messages.push(reply);
  save();
  draw();
  const view = answerView(reply, retry);
  messages.lastChild.replaceWith(view.root);
  const turn = { controller: new AbortController(), reply };
  answering = turn;
  const asked = conversation;
  showBusy(true);
  const live = startLive(view, reply);
  try {
    await receive(reply, body, turn.controller.signal, live);
    delete reply.stopped;
  } catch (error) {
    if (error.name !== "AbortError") {
      delete reply.stopped;
      reply.error = error.message;
    }
  }
  live.end();
  if (answering === turn) {
    answering = null;
    showBusy(false);
  }
  save(asked);
  refreshModels().catch(() => {});
}

async function receive(reply, body, signal, live) {
  const began = performance.now();
  const response = await request("/api/chat", { body, signal });
  let ttft_ms;
  for await (const line of lines(response)) {
    const said = errorText(line);
    if (said) throw new ApiError(said);
    reply.thinking += line.message?.thinking ?? "";
    reply.content += line.message?.content ?? "";
    if (reply.thinking || reply.content) ttft_ms ??= performance.now() - began;
    if (line.done) {
      reply.stats = statsOf(line, ttft_ms);
      return;
    }
    live.changed();
  }
  throw new ApiError("The connection ended before the answer did.");
}

function requestBody() {
  return {
    model: chosenModel(),
    messages: requestMessages(),
    stream: true,
    think: thinking(),
    options: requestOptions(),
  };
}

// Templates insist on taking turns: answers that failed before their first word are left out, and
// what was said before and after them becomes one message.
function requestMessages() {
  const turns = conversation.system?.trim() ? [{ role: "system", content: conversation.system.trim() }] : [];
  for (const { role, content } of conversation.messages) {
    const last = turns.at(-1);
    if (!content) continue;
    if (last?.role === role) last.content += `\n\n${content}`;
    else turns.push({ role, content });
  }
  return turns;
}

// Shows an answer while it grows, once per frame at most, and keeps its end in view.
function startLive(view, reply) {
  const began = Date.now();
  const speech = startSpeaking(byId("announcer"));
  let frame = 0;
  const sentence = () => `Waiting for the first word · ${Math.floor((Date.now() - began) / 1000)} s`;
  const show = () => {
    frame = 0;
    follow(() => view.update(sentence()));
    speech.grown(reply.content);
  };
  const changed = () => (frame ||= requestAnimationFrame(show));
  const clock = setInterval(changed, 1000);
  follow(() => view.update(sentence()), true);
  return {
    changed,
    end() {
      clearInterval(clock);
      cancelAnimationFrame(frame);
      follow(() => view.update(null));
      speech.ended(reply);
    },
  };
}

// Whoever has scrolled up stays there.
function follow(change, always = false) {
  const near = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  change();
  if (near || always) scroll.scrollTop = scroll.scrollHeight;
}

function stop() {
  answering?.controller.abort();
}

function edit() {
  if (answering || draftBefore !== null) return;
  draftBefore = prompt.value;
  prompt.value = conversation.messages.findLast((message) => message.role === "user").content;
  byId("editing").hidden = false;
  fit();
  prompt.focus();
}

function endEdit() {
  const draft = draftBefore;
  draftBefore = null;
  byId("editing").hidden = true;
  setPrompt(draft);
  prompt.focus();
}

function setPrompt(text) {
  prompt.value = text;
  writeValue(DRAFT, text);
  fit();
}

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, PROMPT_HEIGHT_MAX)}px`;
}

// The button that has the focus does not vanish with it.
function showBusy(busy) {
  const [send, stopButton] = [byId("send"), byId("stop")];
  const focused = document.activeElement;
  send.hidden = busy;
  stopButton.hidden = !busy;
  if (focused === send || focused === stopButton || focused === document.body) prompt.focus();
}

function preview() {
  const text = system.value.trim();
  byId("system-preview").textContent = text ? `· ${text.slice(0, 80)}` : "· none";
}

function save(what = conversation) {
  if (what.gone) return;
  what.updated = Date.now();
  try {
    saveConversation(what);
    tell("");
  } catch (error) {
    tell(error.message);
  }
}

function tell(sentence) {
  notice.textContent = sentence;
  notice.hidden = !sentence;
}
