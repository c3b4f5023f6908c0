// The page: a chat, and beside it what the server is doing. On narrow screens one of them at a time.

import { startChat } from "./chat.js";
import { startStatus } from "./status.js";

const buttons = document.querySelectorAll(".views button");

for (const button of buttons) button.addEventListener("click", () => show(button.dataset.view));

function show(view) {
  document.body.dataset.view = view;
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  // What was hidden had no size to draw in.
  dispatchEvent(new Event("resize"));
}

startChat();
startStatus();
