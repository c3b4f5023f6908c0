// The sheet with the conversations that are kept in this browser.

import { attachSheet, byId, h } from "./dom.js";
import { ago } from "./format.js";
import { conversations, deleteConversation, titleOf } from "./store.js";

const sheet = byId("library");
const list = byId("library-list");

/** `open(conversation)` shows one; `deleted(id)` is told what is gone; `current()` is the id shown. */
export function startLibrary({ open, deleted, current }) {
  attachSheet(byId("library-open"), sheet, draw);

  function draw() {
    const all = conversations();
    list.replaceChildren(...all.map(entry));
    if (!all.length) list.append(h("li", { className: "hint" }, "None yet: each is kept from its first message on."));
  }

  function entry(conversation) {
    const title = titleOf(conversation);
    const go = h("button", { type: "button", className: "entry" }, title);
    go.append(h("small", {}, ago(conversation.updated)));
    if (conversation.id === current()) go.setAttribute("aria-current", "true");
    go.addEventListener("click", () => {
      sheet.hidePopover();
      open(conversation);
    });
    const remove = h("button", { type: "button", className: "link", ariaLabel: `Delete "${title}"` }, "Delete");
    remove.addEventListener("click", () => {
      // The second press deletes.
      if (remove.textContent === "Delete") {
        remove.textContent = "Really?";
        remove.ariaLabel = `Really delete "${title}"?`;
        return;
      }
      deleteConversation(conversation.id);
      deleted(conversation.id);
      draw();
      (list.querySelector("button") ?? byId("library-open")).focus();
    });
    return h("li", {}, go, remove);
  }
}
