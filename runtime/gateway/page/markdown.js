/** Markdown as elements: built from texts, and patched in place while an answer streams. */

import { blocksOf } from "./blocks.js";
import { copyButton, el } from "./dom.js";
import { Highlighted } from "./highlight.js";
import { inlineOf } from "./inline.js";
import { t } from "./words.js";

const MOST = 100_000; // characters that are parsed as markdown; the rest is shown as plain text
const LOWEST = 6;
const PART = 40; // blocks of a growing text that are laid out together
const BELOW = 2; // an answer's headings stand under the page's own

/** The elements of a whole text. */
export function rendered(text) {
  const end = endOf(text);
  return [...blocksOf(text.slice(0, end)).map(blockNode), ...restOf(text, end)];
}

/** The end of the part that is parsed as markdown: longer texts would block the page. */
function endOf(text) {
  if (text.length <= MOST) return text.length;
  return text.lastIndexOf("\n", MOST - 1) + 1 || MOST;
}

function restOf(text, end) {
  return end < text.length ? [el("p", { class: "rest" }, text.slice(end))] : [];
}

/**
 * A text that grows: finished blocks stay unchanged, the rest is patched, so that nothing flickers,
 * scrolls back or loses a selection. Long ones are laid out in parts.
 */
export class LiveMarkdown {
  constructor(root) {
    this.root = root;
    this.settled = "";
    this.part = root; // the element that holds the newest blocks
    this.nodes = 0; // the settled ones of them
    this.code = null; // the block of code at the end, which grows in place
  }

  /** Show `text`, usually the previous text with more at its end. */
  write(text) {
    if (!text.startsWith(this.settled)) {
      this.settled = "";
      this.part = this.root;
      this.nodes = 0;
    }
    const from = this.settled.length;
    const end = endOf(text);
    const blocks = blocksOf(text.slice(from, end));
    if (end === text.length && this.grows(blocks, from)) return;
    patch(this.part, [...blocks.map(blockNode), ...restOf(text, end)], this.nodes);
    if (end < text.length) {
      this.settled = text.slice(0, end);
      this.nodes += blocks.length;
      return;
    }
    // the line that is being written may yet become something else
    const line = text.lastIndexOf("\n") + 1 - from;
    const settled = blocks.findLastIndex((block) => block.start < line);
    if (settled > 0) {
      this.settled = text.slice(0, from + blocks[settled].start);
      this.nodes += settled;
      if (this.nodes >= PART) this.beginPart();
    }
  }

  beginPart() {
    const unsettled = [...this.part.childNodes].slice(this.nodes);
    this.part = el("div", { class: "part" }, unsettled);
    this.nodes = 0;
    this.root.append(this.part);
  }

  /** Whether the only unsettled block is code that is on the page already: it grows there. */
  grows([block, ...others], from) {
    if (block?.type !== "code" || others.length) return this.forget();
    const { code } = this;
    if (code?.from === from && code.language === block.language && this.root.contains(code.highlighted.element)) {
      code.highlighted.write(block.text);
      return true;
    }
    const highlighted = new Highlighted(block.language);
    patch(this.part, [codeNode(block, highlighted)], this.nodes);
    const element = this.part.childNodes[this.nodes].querySelector("code");
    if (element !== highlighted.element) highlighted.adopt(element); // the patch kept what was there
    this.code = { from, language: block.language, highlighted };
    return true;
  }

  forget() {
    this.code = null;
    return false;
  }
}

/** Make the children of `parent`, from the one numbered `from` on, equal to `fresh`. */
export function patch(parent, fresh, from = 0) {
  const old = [...parent.childNodes].slice(from);
  fresh.forEach((node, index) => {
    const was = old[index];
    if (!was) parent.append(node);
    else if (isSameKind(was, node)) adopt(was, node);
    else was.replaceWith(node);
  });
  old.slice(fresh.length).forEach((node) => node.remove());
}

function isSameKind(one, other) {
  if (one.nodeName !== other.nodeName) return false;
  return one.nodeType === Node.TEXT_NODE || attributesOf(one) === attributesOf(other);
}

function attributesOf(element) {
  return [...element.attributes].map(({ name, value }) => `${name}=${value}`).join("\n");
}

function adopt(was, node) {
  if (was.nodeType !== Node.TEXT_NODE) patch(was, [...node.childNodes]);
  else if (node.data.startsWith(was.data)) was.appendData(node.data.slice(was.data.length));
  else was.data = node.data;
}

const BLOCKS = {
  paragraph: ({ text }) => el("p", {}, inline(text)),
  heading: ({ level, text }) => el(`h${Math.min(level + BELOW, LOWEST)}`, {}, inline(text)),
  rule: () => el("hr"),
  quote: ({ blocks }) => el("blockquote", {}, blocks.map(blockNode)),
  code,
  list,
  table,
  math: ({ text }) => el("div", { class: "math", tabIndex: 0 }, text),
};

function blockNode(block) {
  return BLOCKS[block.type](block);
}

function code(block) {
  return codeNode(block, new Highlighted(block.language));
}

function codeNode({ language, text }, highlighted) {
  const pre = el("pre", { tabIndex: 0 }, highlighted.write(text));
  const copy = copyButton(() => pre.textContent, "Copy code");
  return el("figure", { class: "code" }, el("figcaption", {}, el("span", {}, language || t("code")), copy), pre);
}

function list({ ordered, first, isLoose, items }) {
  const nodes = items.map((blocks) => item(blocks, isLoose));
  return ordered ? el("ol", { start: first }, nodes) : el("ul", {}, nodes);
}

const TASK = /^\[([ xX])\][ \t]+(?=\S)/;

function item([first, ...others], isLoose) {
  const task = first?.type === "paragraph" ? TASK.exec(first.text) : null;
  if (!task) return el("li", {}, [first, ...others].filter(Boolean).flatMap((block) => itemNodes(block, isLoose)));
  const isDone = task[1] !== " ";
  const box = el("span", { class: "box", role: "img", "aria-label": t(isDone ? "done" : "not done") }, isDone ? "☑" : "☐");
  const rest = { ...first, text: first.text.slice(task[0].length) };
  return el("li", { class: "task" }, box, " ", [rest, ...others].flatMap((block) => itemNodes(block, isLoose)));
}

function itemNodes(block, isLoose) {
  return block.type === "paragraph" && !isLoose ? inline(block.text) : [blockNode(block)];
}

function table({ sides, head, rows }) {
  const row = (tag, cells) => el("tr", {}, cells.map((cell, column) => el(tag, sideOf(sides[column]), inline(cell))));
  const body = rows.length ? el("tbody", {}, rows.map((cells) => row("td", cells))) : null;
  return el("div", { class: "table", tabIndex: 0 }, el("table", {}, el("thead", {}, row("th", head)), body));
}

function sideOf(side) {
  return side ? { class: side } : {};
}

const INLINE = {
  text: ({ text }) => text,
  break: () => el("br"),
  code: ({ text }) => el("code", {}, text),
  math: ({ text }) => el("span", { class: "math" }, text),
  em: ({ children }) => el("em", {}, children.map(inlineNode)),
  strong: ({ children }) => el("strong", {}, children.map(inlineNode)),
  del: ({ children }) => el("del", {}, children.map(inlineNode)),
  link: ({ href, children }) => anchor(href, children.map(inlineNode)),
  image,
};

function inline(text) {
  return inlineOf(text).map(inlineNode);
}

function inlineNode(node) {
  return INLINE[node.type](node);
}

/** A link that opens a new tab, sends no referrer, and shows its address. */
function anchor(href, children) {
  if (!href) return el("span", {}, children);
  return el("a", { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}

/** A picture is never downloaded: its server would learn of the conversation. */
function image({ href, text }) {
  return el("span", { class: "picture" }, t("[picture: {text}]", { text: text || t("no description") }), href ? el("span", {}, " ", anchor(href, [t("address")])) : null);
}
