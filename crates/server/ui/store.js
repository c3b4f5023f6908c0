// Conversations in this browser's storage, one entry each, and small settings beside them.

const CHAT = "hypura.chat.";
export const CONVERSATIONS_MAX = 50;
const CONVERSATION_CHARS_MAX = 1_000_000;

/** What could not be kept, in a sentence for the user. The page goes on without it. */
export class StoreError extends Error {}

export function newConversation() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), system: "", messages: [], updated: 0 };
}

/** The first words of a conversation. */
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user")?.content ?? "";
  return first.trim().replace(/\s+/g, " ").slice(0, 80) || "Without words";
}

/** All conversations, the newest first. Entries that can't be read are left out. */
export function conversations() {
  return keys()
    .map((key) => readValue(key))
    .filter((value) => value?.id && Array.isArray(value.messages))
    .sort((a, b) => b.updated - a.updated);
}

export function conversationCount() {
  return keys().length;
}

export function saveConversation(conversation) {
  const text = JSON.stringify(conversation);
  if (text.length > CONVERSATION_CHARS_MAX) {
    throw new StoreError("This conversation is too long to be kept in this browser; it goes on until the page is closed.");
  }
  const key = CHAT + conversation.id;
  const known = keys();
  if (known.length >= CONVERSATIONS_MAX && !known.includes(key)) {
    throw new StoreError(`${CONVERSATIONS_MAX} conversations are kept, and no more: delete one to keep this one.`);
  }
  try {
    localStorage.setItem(key, text);
  } catch {
    throw new StoreError("This browser's storage is full or blocked: delete conversations to keep this one.");
  }
}

export function deleteConversation(id) {
  localStorage.removeItem(CHAT + id);
}

/** A small value (options, a draft) that may be lost without harm. */
export function readValue(key, fallback = null) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function writeValue(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // Without storage it lasts as long as the page.
  }
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return [];
  }
}
