/** Markdown as elements, built from texts: no text is ever read as markup. */

import { blocksOf } from "./blocks.js";
import { copyButton, el } from "./dom.js";
import { Highlighted } from "./highlight.js";
import { inlineOf } from "./inline.js";
import { formulaOf } from "./latex.js";
import { t } from "./words.js";

const MOST = 100_000; // characters that are parsed as markdown; the rest is shown as plain text
const LOWEST = 6;
const BELOW = 2; // an answer's headings stand under the page's own
const WIDE = 60; // characters of a formula that may be wider than a phone

/** The elements of a whole text. */
export function rendered(text) {
  const end = endOf(text);
  return [...blocksOf(text.slice(0, end)).map(blockNode), ...restOf(text, end)];
}

/** The end of the part that is parsed as markdown: longer texts would block the page. */
export function endOf(text) {
  if (text.length <= MOST) return text.length;
  return text.lastIndexOf("\n", MOST - 1) + 1 || MOST;
}

/** What follows the end, as it is written. */
export function restOf(text, end) {
  return end < text.length ? [el("p", { class: "rest" }, text.slice(end))] : [];
}

const BLOCKS = {
  paragraph: ({ text }) => el("p", {}, inline(text)),
  heading: ({ level, text }) => el(`h${Math.min(level + BELOW, LOWEST)}`, {}, inline(text)),
  rule: () => el("hr"),
  quote: ({ blocks }) => el("blockquote", {}, blocks.map(blockNode)),
  code,
  list,
  table,
  math: ({ text, isClosed }) => mathBlock(text, isClosed ? formulaOf(text, true) : null),
};

/** The element of a block. */
export function blockNode(block) {
  return BLOCKS[block.type](block);
}

function code(block) {
  return codeNode(block, new Highlighted(block.language));
}

function mathBlock(text, formula) {
  return el("div", { class: formula ? "math" : "math source", tabIndex: 0 }, formula ?? text);
}

/** A block of code, in which `highlighted` shows the text. */
export function codeNode({ language, text }, highlighted) {
  const pre = el("pre", { tabIndex: 0 }, highlighted.write(text));
  const copy = copyButton(() => pre.textContent, "Copy code");
  return el("figure", { class: "code" }, el("figcaption", {}, el("span", {}, language || t("code")), copy), pre);
}

function list({ ordered, first, isLoose, items }) {
  const nodes = items.map((blocks) => item(blocks, isLoose));
  return ordered ? el("ol", { start: first }, nodes) : el("ul", {}, nodes);
}

const TASK = /^\[([ xX])\][ \t]+(?=\S)/;

/** An item of a list. */
export function item([first, ...others], isLoose) {
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
  const body = rows.length ? el("tbody", {}, rows.map((cells) => rowNode("td", cells, sides))) : null;
  return el("div", { class: "table", tabIndex: 0 }, el("table", {}, el("thead", {}, rowNode("th", head, sides)), body));
}

/** A row of a table. */
export function rowNode(tag, cells, sides) {
  return el("tr", {}, cells.map((cell, column) => el(tag, sideOf(sides[column]), inline(cell))));
}

function sideOf(side) {
  return side ? { class: side } : {};
}

const INLINE = {
  text: ({ text }) => document.createTextNode(text),
  break: () => el("br"),
  code: ({ text }) => el("code", {}, text),
  math,
  em: ({ children }) => el("em", {}, children.map(inlineNode)),
  strong: ({ children }) => el("strong", {}, children.map(inlineNode)),
  del: ({ children }) => el("del", {}, children.map(inlineNode)),
  link: ({ href, children }) => anchor(href, children.map(inlineNode)),
  image,
};

/** The nodes of a text inside a block, from a place that `settledEnd` has returned. */
export function inline(text, from = 0) {
  return inlineOf(text, from).map(inlineNode);
}

function math({ text, isBlock }) {
  const formula = formulaOf(text, false);
  if (!formula) return el("span", { class: "math source" }, text);
  if (isBlock) formula.setAttribute("displaystyle", "true");
  return text.length > WIDE ? el("span", { class: "math wide", tabIndex: 0 }, formula) : el("span", { class: "math" }, formula);
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
