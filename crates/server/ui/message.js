// How one message looks: text, reasoning apart, numbers below, errors in place.

import { copyButton, h, setText } from "./dom.js";
import { count, digits, seconds } from "./format.js";
import { renderMarkdown } from "./markdown.js";

/** A message of the user's; `onEdit` is there for the last one only. */
export function userView(message, onEdit) {
  const actions = h("div", { className: "actions" }, copyButton(() => message.content, "message"));
  if (onEdit) actions.append(action("Edit", "Edit the last message", onEdit));
  return h(
    "article",
    { className: "message user", ariaLabel: "You" },
    h("div", { className: "text" }, message.content),
    h("footer", {}, actions),
  );
}

/**
 * An answer. `root` is its node; `update(live)` shows what the message has become, where `live` is
 * the sentence to show while nothing has arrived, or null for an answer that is over.
 */
export function answerView(message, onRetry) {
  const thought = h("div", { className: "thought" });
  const thoughtLabel = h("summary", {}, "Reasoning");
  const reasoning = h("details", { className: "reasoning", hidden: true }, thoughtLabel, thought);
  const prose = h("div", { className: "prose" });
  const wait = h("p", { className: "wait", hidden: true });
  const problem = h("p", { className: "problem", role: "alert", hidden: true });
  const numbers = h("p", { className: "numbers" });
  const actions = h("div", { className: "actions" }, copyButton(() => message.content, "answer"));
  if (onRetry) actions.append(action("Retry", "Ask for this answer again", onRetry));
  const footer = h("footer", {}, numbers, actions);
  const root = h(
    "article",
    { className: "message answer", ariaLabel: `Answer of ${message.model}` },
    h("header", {}, message.model ?? "model"),
    reasoning, prose, wait, problem, footer,
  );

  function update(live) {
    reasoning.hidden = !message.thinking;
    setText(thought, message.thinking ?? "");
    setText(thoughtLabel, live !== null && !message.content ? "Reasoning …" : "Reasoning");
    renderMarkdown(prose, message.content);
    root.classList.toggle("live", live !== null);
    wait.hidden = live === null || message.content !== "";
    setText(wait, live ?? "");
    problem.hidden = !message.error;
    setText(problem, message.error ?? "");
    footer.hidden = live !== null;
    setText(numbers, live === null ? summary(message) : "");
  }

  return { root, update };
}

/** The numbers of an answer from the last line of its stream, for `message.stats`. */
export function statsOf(line, ttft_ms) {
  return {
    tokens: line.eval_count,
    tokens_per_s: line.eval_count / (line.eval_duration / 1e9),
    prompt_tokens: line.prompt_eval_count,
    reused_tokens: line.hypura?.reused_tokens,
    ttft_ms: line.hypura?.ttft_ms ?? ttft_ms,
    load_s: line.load_duration / 1e9,
    cut: line.done_reason === "length",
  };
}

function action(label, name, run) {
  const button = h("button", { type: "button", className: "link", ariaLabel: name }, label);
  button.addEventListener("click", run);
  return button;
}

function summary({ stats, stopped }) {
  const parts = [];
  if (stopped) parts.push("stopped");
  if (stats?.cut) parts.push("cut off at the longest length");
  if (stats?.tokens > 0) parts.push(`${count(stats.tokens)} tokens`);
  if (stats?.tokens > 1 && Number.isFinite(stats.tokens_per_s)) parts.push(`${digits(stats.tokens_per_s)} tokens/s`);
  if (stats?.ttft_ms > 0) parts.push(`first token after ${seconds(stats.ttft_ms / 1000)}`);
  if (stats?.load_s > 0.5) parts.push(`${seconds(stats.load_s)} to load`);
  if (stats?.prompt_tokens > 0) parts.push(prompt(stats));
  return parts.join(" · ");
}

function prompt({ prompt_tokens, reused_tokens }) {
  if (!(reused_tokens > 0)) return `${count(prompt_tokens)} prompt tokens`;
  return `reused ${count(reused_tokens)} of ${count(prompt_tokens)} prompt tokens`;
}
