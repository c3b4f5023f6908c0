// A small Markdown, from text to nodes: paragraphs, code, lists, headings, emphasis, links.
// There is no way from the text to HTML: every piece becomes a text node.

import { copyButton, h } from "./dom.js";

const DEPTH_MAX = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*?)#* *$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(?=\S)/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
// Alternatives in the order of their groups. Lengths are bounded, so that a text of asterisks
// alone costs a bounded look ahead for each.
const INLINE = new RegExp(
  [
    /\\([!-/:-@[-`{-~])/, // 1: escaped sign
    /(?<!`)(`+)(?!`)([^]{1,2000}?)(?<!`)\2(?!`)/, // 2, 3: code
    /\*\*(?=\S)([^]{1,2000}?)(?<=\S)\*\*/, // 4: bold
    /\*(?=[^\s*])([^*]{1,2000}?)(?<=\S)\*(?!\*)/, // 5: italic
    /(?<!\w)_(?=[^\s_])([^_]{1,2000}?)(?<=\S)_(?!\w)/, // 6: italic
    /\[([^\][]{1,1000})\]\(<?(https?:\/\/[^\s<>()]{1,2000})>?\)/, // 7, 8: link
    /(?<!\w)(https?:\/\/[^\s<>"'`)\]]{1,2000}[^\s<>"'`)\].,;:!?*_])/, // 9: bare link
  ]
    .map((part) => part.source)
    .join("|"),
  "gi",
);

// What each container shows: the source of each of its blocks.
const shown = new WeakMap();

/** Shows `text` in `container`. Blocks that did not change keep their nodes. */
export function renderMarkdown(container, text) {
  const before = shown.get(container) ?? [];
  const blocks = split(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"));
  const sources = blocks.map((block) => block.kind + block.lines.join("\n"));
  let same = 0;
  while (same < sources.length && sources[same] === before[same]) same += 1;
  while (container.children.length > same) container.lastChild.remove();
  for (const block of blocks.slice(same)) container.append(node(block, 0));
  shown.set(container, sources);
}

// Cuts lines into blocks: { kind, lines, ... }.
function split(lines) {
  const blocks = [];
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) blocks.push({ kind: "p", lines: paragraph });
    paragraph = [];
  };
  for (let at = 0; at < lines.length; ) {
    const block = startOf(lines, at);
    if (block) {
      flush();
      blocks.push(block);
      at = block.end;
    } else {
      if (lines[at].trim()) paragraph.push(lines[at]);
      else flush();
      at += 1;
    }
  }
  flush();
  return blocks;
}

// The block other than a paragraph that begins at `at`, if one does.
function startOf(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return { kind: `h${heading[1].length}`, lines: [heading[2]], end: at + 1 };
  if (RULE.test(line)) return { kind: "hr", lines: [line], end: at + 1 };
  const item = ITEM.exec(line);
  return item && list(lines, at, item);
}

function code(lines, at, [, mark, language]) {
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  while (end < lines.length && !closes(lines[end])) end += 1;
  return { kind: "code", language, lines: lines.slice(at + 1, end), end: end + 1 };
}

// A list goes on over items of its kind, what is indented, and lines that carry on a paragraph.
function list(lines, at, first) {
  const indent = first[1].length;
  const ordered = isOrdered(first);
  let end = at + 1;
  let blank = false;
  for (let next = end; next < lines.length; next += 1) {
    const line = lines[next];
    const item = ITEM.exec(line);
    const depth = line.search(/\S/);
    if (depth < 0) {
      blank = true;
      continue;
    }
    const belongs = item
      ? item[1].length > indent + 1 || (item[1].length >= indent && isOrdered(item) === ordered)
      : depth >= indent + 2 || (!blank && !FENCE.test(line) && !HEADING.test(line));
    if (!belongs) break;
    blank = false;
    end = next + 1;
  }
  return { kind: ordered ? "ol" : "ul", indent, first: first[2], lines: lines.slice(at, end), end };
}

const isOrdered = (item) => /\d/.test(item[2]);

function node(block, depth) {
  switch (block.kind) {
    case "code":
      return codeNode(block);
    case "ul":
    case "ol":
      return listNode(block, depth);
    case "hr":
      return h("hr");
    default:
      return inlineInto(h(tagOf(block.kind)), block.lines.join("\n").trim(), depth);
  }
}

// The page has headings of the first two levels itself.
function tagOf(kind) {
  return kind === "p" ? "p" : `h${Math.min(6, Number(kind[1]) + 2)}`;
}

function codeNode({ language, lines }) {
  const text = lines.join("\n");
  const bar = h("div", { className: "code-bar" }, h("span", {}, language || "text"));
  bar.append(copyButton(() => text, "code"));
  const body = h("pre", { tabIndex: 0, ariaLabel: "Code", role: "region" }, h("code", {}, text));
  return h("div", { className: "code" }, bar, body);
}

function listNode({ kind, indent, first, lines }, depth) {
  const element = h(kind);
  if (kind === "ol") element.start = Number.parseInt(first, 10);
  let content = [];
  const flush = () => {
    if (content.length) element.append(itemNode(content, depth));
    content = [];
  };
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent + 1) {
      flush();
      content.push({ width: item[0].length, text: line.slice(item[0].length) });
    } else {
      const width = Math.min(content[0].width, Math.max(0, line.search(/\S/)));
      content.push({ text: line.slice(width) });
    }
  }
  flush();
  return element;
}

function itemNode(content, depth) {
  const lines = content.map((line) => line.text);
  const item = h("li");
  if (depth >= DEPTH_MAX) return h("li", {}, lines.join("\n"));
  for (const block of split(lines)) {
    // Text of a tight item needs no paragraph around it.
    if (block.kind === "p" && !lines.includes("")) inlineInto(item, block.lines.join("\n"), depth);
    else item.append(node(block, depth + 1));
  }
  return item;
}

// Appends `text` with its emphasis, code and links.
function inlineInto(parent, text, depth) {
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(from, match.index));
    parent.append(inlineNode(match, depth));
    from = match.index + match[0].length;
  }
  parent.append(text.slice(from));
  return parent;
}

function inlineNode(match, depth) {
  const [whole, escaped, , codeText, bold, italicStar, italicLine, label, target, bare] = match;
  if (escaped) return escaped;
  if (codeText) return h("code", {}, codeText.trim() || codeText);
  if (depth >= DEPTH_MAX) return whole;
  if (bold) return inlineInto(h("strong"), bold, depth + 1);
  if (italicStar ?? italicLine) return inlineInto(h("em"), italicStar ?? italicLine, depth + 1);
  return linkNode(label, target ?? bare, whole);
}

// A link shows where it goes, whatever its text says.
function linkNode(label, target, whole) {
  if (!URL.canParse(target)) return whole;
  const url = new URL(target);
  if (url.protocol !== "https:" && url.protocol !== "http:") return whole;
  const link = h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, label ?? target);
  if (!label || label === target) return link;
  return h("span", {}, link, h("span", { className: "href" }, ` (${url.href})`));
}
