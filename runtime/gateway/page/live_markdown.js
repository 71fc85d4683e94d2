/** Markdown that grows: what is finished stays as it is, and only the end is read again. */

import { blocksOf } from "./blocks.js";
import { el } from "./dom.js";
import { growingOf } from "./growing_blocks.js";
import { blockNode, endOf, restOf } from "./markdown.js";
import { patch } from "./patch.js";

const PART = 24; // blocks of a growing text that are laid out together
const RECENT = 4; // parts that are laid out even where they are out of sight

/**
 * A text that grows: finished blocks stay unchanged, the rest is patched, so that nothing flickers,
 * scrolls back or loses a selection. Long ones are laid out in parts.
 */
export class LiveMarkdown {
  constructor(root) {
    this.root = root;
    this.growing = null; // the block at the end, where it is long
    this.isComplete = false;
    this.begin();
  }

  begin() {
    this.close();
    this.settled = "";
    this.part = this.root; // the element that holds the newest blocks
    this.recent = []; // the last parts: to hide and show what is in sight would take a frame
    this.nodes = 0; // the settled ones of them
  }

  /** Show `text`, usually the previous text with more at its end. */
  write(text) {
    if (this.isComplete) this.close();
    if (!text.startsWith(this.settled)) this.begin();
    const from = this.settled.length;
    const end = endOf(text);
    if (from === end && from) return this.writeRest(text, end);
    const blocks = this.blocks(text.slice(from, end));
    const shown = this.growing ? 1 : 0;
    patch(this.part, [...blocks.slice(shown).map(blockNode), ...restOf(text, end)], this.nodes + shown);
    if (end < text.length) {
      this.settled = text.slice(0, end);
      this.nodes += blocks.length;
      return;
    }
    if (!this.growing && blocks.length === 1) this.growing = growingOf(blocks[0], text.slice(from), this.part.childNodes[this.nodes]);
    // the line that is being written may yet become something else
    const line = text.lastIndexOf("\n") + 1 - from;
    const settled = blocks.findLastIndex((block) => block.start < line);
    if (settled > 0) {
      this.growing?.settle();
      this.growing = null;
      this.settled = text.slice(0, from + blocks[settled].start);
      this.nodes += settled;
      if (this.nodes >= PART) this.beginPart();
    }
  }

  /** Show what is beyond the end; the blocks stay. */
  writeRest(text, end) {
    patch(this.part, restOf(text, end), this.nodes);
  }

  /** The blocks of a text; a growing first one shows itself, unless it is not what it was. */
  blocks(text) {
    const blocks = this.growing?.write(text) ?? null;
    if (blocks) return blocks;
    this.close();
    return blocksOf(text);
  }

  /** The text is complete for now: what is laid out in pieces is put together, frame by frame. */
  settle() {
    this.growing?.settle();
    this.isComplete = true;
  }

  /** Put what is laid out in pieces together at once. */
  close() {
    this.growing?.close();
    this.growing = null;
    this.isComplete = false;
  }

  beginPart() {
    const unsettled = [...this.part.childNodes].slice(this.nodes);
    this.part = el("div", { class: "part" }, unsettled);
    this.nodes = 0;
    this.root.append(this.part);
    this.recent.push(this.part);
    if (this.recent.length > RECENT) this.recent.shift().classList.add("past");
  }
}
