/**
 * Long blocks that grow. Each keeps what is finished of it, on the page as well as in what has been
 * read, so that more text takes the time of that text only.
 *
 * `write` takes the block's text from its first line on, shows it, and returns the block and those
 * after it, or null where the text is not what it was: then the block is read as a whole. A complete
 * block is told to `settle`: what was laid out in pieces is put together frame by frame, or stays
 * where nobody sees them. `close` puts it together at once.
 */

import { MOST_PADDING, blocksOf } from "./blocks.js";
import { freezeLines, isSelected, thaw } from "./frozen_lines.js";
import { ListPieces, TablePieces } from "./frozen_pieces.js";
import { Highlighted } from "./highlight.js";
import { settledEnd } from "./inline.js";
import { inline, item, rowNode } from "./markdown.js";
import { patch } from "./patch.js";

const LONG = 2000; // characters from which on a block grows by itself
const STEP = 500; // characters that are read again at most, where the text allows it

const BEFORE = "a\n";

/** What lets a block grow, or null for one that is short or cannot. `text` begins with the block. */
export function growingOf(block, text, element) {
  if (block.type === "code") return new GrowingCode(block, text, element);
  if (text.length < LONG || block.start !== 0) return null;
  if (block.type === "paragraph") return new GrowingParagraph(element);
  if (block.type === "list") return new GrowingList(block, element);
  return block.type === "table" && block.rows.length ? new GrowingTable(block, text, element) : null;
}

/** The blocks of `text` that follow the first one, as they are counted from an earlier place. */
function shifted(first, [, ...others], by) {
  return [{ ...first, start: 0 }, ...others.map((block) => ({ ...block, start: block.start + by }))];
}

/** A block of code: its first line is put before the lines that are read again. */
class GrowingCode {
  constructor(block, text, element) {
    this.opening = text.slice(block.start, text.indexOf("\n", block.start) + 1);
    this.at = block.start + this.opening.length;
    this.done = ""; // the code before that place
    this.highlighted = new Highlighted(block.language);
    this.highlighted.adopt(element.querySelector("code"), block.text);
    this.language = block.language;
    this.known = text.slice(0, this.at);
  }

  write(text) {
    if (!this.opening || !text.startsWith(this.known)) return null;
    const blocks = blocksOf(this.opening + text.slice(this.at));
    const [block] = blocks;
    if (block.type !== "code" || block.language !== this.language) return null;
    this.highlighted.write(this.done + block.text);
    const found = shifted(block, blocks, this.at - this.opening.length);
    const line = block.text.lastIndexOf("\n") + 1;
    if (blocks.length === 1 && !block.isClosed && line > STEP) {
      this.done += block.text.slice(0, line);
      this.at = text.lastIndexOf("\n") + 1;
      this.known = text.slice(0, this.at);
    }
    return found;
  }

  settle() {}

  close() {}
}

/** A table: its first two lines are put before the rows that are read again. */
class GrowingTable {
  constructor(block, text, element) {
    const second = text.indexOf("\n") + 1;
    this.head = text.slice(0, text.indexOf("\n", second) + 1);
    this.at = this.head.length;
    this.known = text.slice(0, this.at);
    this.body = element.querySelector("tbody");
    this.rows = 0; // those that are finished
    this.lacking = 0; // cells that they lack
    this.pieces = new TablePieces(element.querySelector("table"), (rows) => { this.rows += rows; });
  }

  write(text) {
    if (!text.startsWith(this.known)) return null;
    const blocks = blocksOf(this.head + text.slice(this.at));
    const [block] = blocks;
    if (block.type !== "table" || this.lacking + sum(block.lacking) > MOST_PADDING) return null;
    this.rows -= this.pieces.freeze(this.rows);
    patch(this.body, block.rows.map((cells) => rowNode("td", cells, block.sides)), this.rows);
    const found = shifted(block, blocks, this.at - this.head.length);
    const line = text.lastIndexOf("\n") + 1;
    const lines = newlines(text.slice(this.at, line));
    if (lines && lines <= block.rows.length) { // else a line that is no row has ended the table
      this.rows += lines;
      this.lacking += sum(block.lacking.slice(0, lines));
      this.at = line;
      this.known = text.slice(0, line);
    }
    return found;
  }

  settle() {
    this.pieces.settle();
  }

  close() {
    this.pieces.thaw();
  }
}

function isSpace(node) {
  return node?.nodeType === Node.TEXT_NODE && node.data.trim() === "";
}

function sum(numbers) {
  return numbers.reduce((all, number) => all + number, 0);
}

function newlines(text) {
  return text.split("\n").length - 1;
}

/** A list: all but its last item are finished, unless a blank line sets all items apart. */
class GrowingList {
  constructor(block, element) {
    this.element = element;
    this.isLoose = block.isLoose;
    this.ordered = block.ordered;
    this.items = 0; // those that are finished
    this.pieces = new ListPieces(element);
    this.at = 0;
    this.known = "";
  }

  write(text) {
    if (!text.startsWith(this.known)) return null;
    const blocks = blocksOf(text.slice(this.at));
    const [block] = blocks;
    if (block.type !== "list" || block.ordered !== this.ordered || (block.isLoose && !this.isLoose)) return null;
    this.items -= this.pieces.freeze(this.items);
    patch(this.element, block.items.map((inside) => item(inside, this.isLoose)), this.items);
    const found = shifted(block, blocks, this.at);
    const line = text.lastIndexOf("\n") + 1 - this.at;
    const last = block.starts.findLastIndex((start) => start < line);
    if (blocks.length === 1 && last > 0) {
      this.items += last;
      this.at += block.starts[last];
      this.known = text.slice(0, this.at);
    }
    return found;
  }

  settle() {
    this.pieces.settle();
  }

  close() {
    this.pieces.thaw();
  }
}

/** A paragraph: marks that are closed are finished, and lines of finished text are laid out alone. */
class GrowingParagraph {
  constructor(element) {
    this.element = element;
    this.known = ""; // the lines that are not read again
    this.done = ""; // the text of those lines
    this.text = "";
    this.at = 0; // the end of what is finished
    this.nodes = 0; // those that show it
    this.loose = 0; // the nodes before the first one that is not in frozen lines
    this.frozenAt = 0; // about where its text begins
    this.width = 0;
    this.watch = new ResizeObserver(([{ contentRect: { width } }]) => {
      if (!width) return; // it is hidden
      if (this.width && width !== this.width) requestAnimationFrame(() => { if (this.watch) this.thaw(); });
      this.width = width;
    });
    this.watch.observe(element);
  }

  write(source) {
    if (!source.startsWith(this.known)) return null;
    const before = this.known ? BEFORE : ""; // a line before these, so that they go on
    const blocks = blocksOf(before + source.slice(this.known.length));
    const [block] = blocks;
    if (block?.type !== "paragraph" || block.start !== 0) return null;
    const text = this.done + block.text.slice(before.length);
    if (!text.startsWith(this.text.slice(0, this.at))) return null;
    this.freeze();
    this.show(text);
    const found = shifted(block, blocks, this.known.length - before.length);
    const line = block.text.lastIndexOf("\n", block.text.lastIndexOf("\n") - 1) + 1 - before.length; // a line's end depends on the next one
    if (blocks.length === 1 && line > STEP && newlines(source.slice(this.known.length).trimEnd()) === newlines(block.text) - newlines(before)) {
      this.done = text.slice(0, this.done.length + line);
      this.known = source.slice(0, source.trimEnd().lastIndexOf("\n", source.trimEnd().lastIndexOf("\n") - 1) + 1);
    }
    return found;
  }

  show(text) {
    patch(this.element, inline(text, this.at), this.nodes);
    this.text = text;
    if (text.length - this.at < 2 * STEP) return;
    const end = settledEnd(text, this.at);
    if (end === this.at) return;
    const finished = inline(text.slice(0, end), this.at);
    this.nodes += finished.length;
    this.at = end;
    const last = this.element.childNodes[this.nodes - 1];
    const { nodeType, length } = finished.at(-1);
    if (nodeType === Node.TEXT_NODE && last.length > length) last.splitText(length);
  }

  /** Lay out finished lines by themselves. It asks where lines end, so nothing may have changed since the last frame. */
  freeze() {
    const { element } = this;
    if (this.at - this.frozenAt < 2 * STEP || isSelected(element)) return;
    const before = element.childNodes.length;
    const lines = freezeLines(element.childNodes[this.loose], element.childNodes[this.nodes] ?? null);
    if (!lines) return;
    this.nodes += element.childNodes.length - before;
    this.loose += isSpace(lines.nextSibling) ? 2 : 1;
    this.frozenAt = this.at;
  }

  thaw() {
    const { element } = this;
    const before = element.childNodes.length;
    if (!thaw(element)) return;
    this.nodes += element.childNodes.length - before;
    this.loose = 0;
    this.frozenAt = 0;
  }

  /** Lines stay as they are until they are to be as long as others. */
  settle() {}

  close() {
    this.watch.disconnect();
    this.watch = null;
    this.thaw();
  }
}
