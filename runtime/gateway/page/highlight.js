/**
 * Colours code: splits a text into words of a language and the rest. The kind of a word depends
 * only on the text from its first character on: of a growing text, only the end is split again.
 * Long code is put into blocks of lines, because a browser lays out a whole block at a time.
 */

import { languageOf } from "./languages.js";

const MOST = 20_000; // coloured words of one text; the rest is plain
const AHEAD = 2; // characters after a word that its kind may depend on
const LINES = 50; // of one block
const PLAIN = { pattern: /\n|[^\n]+/y, keywords: new Set() };
const START = { at: 0, nodes: 0, lines: 0, colored: 0 };

/** A code element whose text grows; the nodes of finished words are kept. */
export class Highlighted {
  constructor(name) {
    this.language = languageOf(name) ?? PLAIN;
    this.element = document.createElement("code");
    this.text = "";
    this.settled = START; // the text before it, and the nodes that show that, no longer change
  }

  /** Continue in an element that shows `text`. */
  adopt(element, text) {
    this.element = element;
    this.settled = START;
    element.replaceChildren();
    this.write(text);
  }

  /** Show `text`, usually the previous one with more at its end. */
  write(text) {
    if (!text.startsWith(this.text)) this.settled = START;
    this.text = text;
    let tail = [];
    let { lines, colored } = this.settled;
    for (const { kind, word, at } of this.words()) {
      const last = tail.at(-1);
      if (!kind && last && !last.kind) last.word += word;
      else tail.push({ kind, word });
      lines += newlines(word);
      if (kind) colored += 1;
      const end = at + word.length;
      if (end + AHEAD > text.length) continue;
      const isFull = word === "\n" && lines >= LINES;
      if (!kind && !isFull) continue;
      this.show(tail);
      tail = [];
      if (isFull) lines = this.enclose();
      this.settled = { at: end, nodes: this.element.childNodes.length, lines, colored };
    }
    this.show(tail);
    return this.element;
  }

  /** The words of the text from the settled part on; those without a kind are plain. */
  * words() {
    let { at, colored } = this.settled;
    while (at < this.text.length) {
      const { pattern, keywords, fold } = colored < MOST ? this.language : PLAIN;
      pattern.lastIndex = at;
      const { 0: word, groups = {} } = pattern.exec(this.text);
      const named = Object.keys(groups).find((name) => groups[name] !== undefined) ?? "";
      const kind = named !== "word" ? named : keywords.has(fold ? word.toLowerCase() : word) ? "keyword" : "";
      if (kind) colored += 1;
      yield { kind, word, at };
      at += word.length;
    }
  }

  /** Make the nodes after the settled ones equal to those of `tail`; equal nodes stay. */
  show(tail) {
    const { element, settled } = this;
    tail.forEach(({ kind, word }, index) => {
      const was = element.childNodes[settled.nodes + index];
      if (!was) element.append(nodeOf(kind, word));
      else if (kindOf(was) !== kind || (kind && was.textContent !== word)) was.replaceWith(nodeOf(kind, word));
      else if (!kind && word.startsWith(was.data)) was.appendData(word.slice(was.data.length));
      else if (!kind) was.data = word;
    });
    while (element.childNodes.length > settled.nodes + tail.length) element.lastChild.remove();
  }

  /** Put the loose nodes at the end into a block of lines; returns the lines after it. */
  enclose() {
    const block = document.createElement("span");
    block.className = "lines";
    while (this.element.lastChild && this.element.lastChild.className !== "lines") block.prepend(this.element.lastChild);
    this.element.append(block);
    block.previousSibling?.previousSibling?.previousSibling?.classList.add("past"); // far above what is written now
    return 0;
  }
}

function newlines(word) {
  let count = 0;
  for (let at = word.indexOf("\n"); at >= 0; at = word.indexOf("\n", at + 1)) count += 1;
  return count;
}

function kindOf(node) {
  return node.nodeType === Node.TEXT_NODE ? "" : node.className.replace("code-", "");
}

function nodeOf(kind, word) {
  if (!kind) return document.createTextNode(word);
  const span = document.createElement("span");
  span.className = `code-${kind}`;
  span.append(word);
  return span;
}
