/**
 * Colours code: splits a text into words of a language and the rest. What a word is depends only on
 * the text from its first character on, so that a text that grows is split from its last word on.
 */

import { languageOf } from "./languages.js";

const MOST = 20_000; // coloured words of one block; the rest is plain
const AHEAD = 2; // characters after a word that its kind may depend on

/** A code element whose text grows; words that stand are not made again. */
export class Highlighted {
  constructor(name) {
    this.language = languageOf(name);
    this.element = document.createElement("code");
    this.text = "";
    this.settled = 0; // characters in words that no longer change
    this.nodes = 0; // the nodes that hold them
  }

  /** Go on in another element, which shows the same. */
  adopt(element) {
    this.element = element;
    this.settled = this.nodes = 0;
    element.replaceChildren();
    this.write(this.text);
  }

  /** Show `text`, usually the previous one with more at its end. */
  write(text) {
    if (!text.startsWith(this.text)) this.settled = this.nodes = 0;
    this.text = text;
    if (!this.language || this.nodes > MOST) return this.plain();
    while (this.element.childNodes.length > this.nodes) this.element.lastChild.remove();
    let plain = "";
    const end = () => {
      if (plain) this.element.append(plain);
      plain = "";
    };
    for (const { kind, word, at } of wordsOf(text, this.language, this.settled)) {
      if (kind) {
        end();
        this.element.append(colored(kind, word));
      } else plain += word;
      if (kind && at + word.length + AHEAD <= text.length) {
        this.settled = at + word.length;
        this.nodes = this.element.childNodes.length;
      }
      if (this.element.childNodes.length > MOST) return this.plain();
    }
    end();
    return this.element;
  }

  /** Show what is not split as one text, which is added to. */
  plain() {
    const rest = this.text.slice(this.settled);
    const last = this.element.childNodes[this.nodes];
    while (this.element.childNodes.length > this.nodes + 1) this.element.lastChild.remove();
    if (last?.nodeType === Node.TEXT_NODE && rest.startsWith(last.data)) last.appendData(rest.slice(last.data.length));
    else {
      last?.remove();
      if (rest) this.element.append(rest);
    }
    return this.element;
  }
}

/** The words of a text from `from` on; those without a kind are plain. */
function* wordsOf(text, { pattern, keywords, fold }, from) {
  let at = from;
  while (at < text.length) {
    pattern.lastIndex = at;
    const { 0: word, groups } = pattern.exec(text);
    const named = Object.keys(groups).find((name) => groups[name] !== undefined);
    const kind = named === "word" ? (keywords.has(fold ? word.toLowerCase() : word) ? "keyword" : "") : named ?? "";
    yield { kind, word, at };
    at += word.length;
  }
}

function colored(kind, word) {
  const span = document.createElement("span");
  span.className = `code-${kind}`;
  span.append(word);
  return span;
}
