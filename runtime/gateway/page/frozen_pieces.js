/**
 * Finished items of a list, and finished rows of a table, laid out by themselves: a browser looks at
 * all items of a list and all cells of a table for each one that is added. A complete list or table
 * becomes one element again, a piece in each frame.
 */

import { el } from "./dom.js";
import { inFrames } from "./frame_steps.js";
import { isSelected } from "./frozen_lines.js";

const ENOUGH = 40; // items or rows of a piece
const NEAR = 0.5; // pixels
const ALIGNED = 6; // pieces that get other widths in one frame

/** Whether the reader has selected or focused a part of `element`, which would be lost if it moved. */
function isHeld(element) {
  return isSelected(element) || (element !== document.activeElement && element.contains(document.activeElement));
}

/** A list in pieces: each is a list of its own, until the text is complete. */
export class ListPieces {
  constructor(list) {
    this.list = list;
    this.place = null; // the element around the pieces
  }

  /** Take finished items, of which there are `count` at the beginning, into a piece; returns how many. */
  freeze(count) {
    const { list } = this;
    if (count < ENOUGH || isSelected(list)) return 0;
    if (!this.place) {
      this.place = el("div", { class: "pieces" });
      list.replaceWith(this.place);
      this.place.append(list);
    }
    const piece = list.cloneNode(false);
    piece.append(...[...list.children].slice(0, count));
    list.before(piece);
    if (list.nodeName === "OL") list.start += count;
    return count;
  }

  /** Make it one list again, frame by frame. */
  settle() {
    const { place } = this;
    if (!place) return;
    inFrames(() => {
      if (this.place !== place || !place.isConnected) return false;
      const [first, next] = place.children;
      if (next) {
        first.append(...next.children);
        next.remove();
      }
      return place.children.length > 1;
    }, () => isHeld(place));
  }

  /** Make it one list again, at once. */
  thaw() {
    const { place } = this;
    if (!place) return;
    const [first, ...others] = place.children;
    first.append(...others.flatMap((piece) => [...piece.children]));
    place.replaceWith(first);
    this.place = null;
  }
}

/** A table in pieces, whose columns are as wide as those of the table that grows. */
export class TablePieces {
  /** `thawed` receives the number of rows that come back by themselves. */
  constructor(table, thawed) {
    this.table = table;
    this.thawed = thawed;
    this.head = table.tHead;
    this.pieces = [];
    this.late = []; // those that have not got their new widths yet
    this.widths = [];
    this.available = 0;
    this.watch = new ResizeObserver(() => this.align());
  }

  /** Take finished rows, of which there are `count` at the beginning, into a piece; returns how many. */
  freeze(count) {
    const { table, head } = this;
    if (count < ENOUGH || isSelected(table)) return 0;
    const isFirst = this.pieces.length === 0;
    if (isFirst) {
      this.measure();
      head.remove();
    }
    const body = table.tBodies[0];
    const piece = el("table", { class: "piece" }, el("colgroup", {}, this.widths.map(() => el("col"))), isFirst ? head : null,
      el("tbody", {}, [...body.rows].slice(0, count)));
    if (isFirst) {
      this.spacers = this.widths.map(() => el("div"));
      table.prepend(el("thead", { class: "spacers", "aria-hidden": "true" }, el("tr", {}, this.spacers.map((spacer) => el("td", {}, spacer)))));
      this.available = table.parentElement.clientWidth;
      this.watch.observe(table);
      this.watch.observe(table.parentElement);
      this.space();
    }
    this.pieces.push(piece);
    this.apply([piece]);
    table.before(piece);
    return count;
  }

  measure() {
    this.widths = [...this.table.tHead.rows[0].cells].map((cell) => cell.getBoundingClientRect().width);
    this.width = this.table.getBoundingClientRect().width;
  }

  /** Keep the columns of the table that grows as wide as they are. */
  space() {
    this.spacers.forEach((spacer, index) => { spacer.style.width = `${this.widths[index]}px`; });
  }

  /** Give pieces the widths of the table that grows. */
  apply(pieces) {
    for (const piece of pieces) {
      piece.style.width = `${this.width}px`;
      [...piece.firstChild.children].forEach((column, index) => { column.style.width = `${this.widths[index]}px`; });
    }
  }

  /** A wider cell has come, or the window has another width. */
  align() {
    if (!this.pieces.length) return;
    const { table, widths, available } = this;
    const place = this.pieces[0].parentElement;
    if (!place.clientWidth) return; // it is hidden
    if (place.clientWidth !== available) return requestAnimationFrame(() => this.thawed(this.thaw()));
    if (!table.isConnected) return;
    this.measure();
    if (!this.widths.some((width, index) => Math.abs(width - widths[index]) > NEAR)) return;
    this.space();
    const isIdle = !this.late.length;
    this.late = [...this.pieces]; // the nearest ones first
    if (isIdle) this.alignLate();
  }

  alignLate() {
    this.apply(this.late.splice(-ALIGNED));
    if (this.late.length) requestAnimationFrame(() => this.alignLate());
  }

  /** Make it one table again, frame by frame. Its columns stay as they are until its place has another width. */
  settle() {
    const { table, pieces } = this;
    const [first] = pieces;
    if (!first) return;
    let isAligned = false;
    const whole = first.tBodies[0];
    inFrames(() => {
      if (!pieces.length || !first.isConnected) return false;
      if (!isAligned || this.late.length) return isAligned = true; // the last row's widths come with the next frame
      const [next] = pieces.splice(1, 1);
      whole.append(...(next ?? table).tBodies[0].rows);
      (next ?? table).remove();
      return Boolean(next);
    }, () => first.isConnected && isHeld(first.parentElement));
  }

  /** Make it one table again, at once; returns the number of rows that come back to the one that grows. */
  thaw() {
    const { table, head, pieces } = this;
    if (!pieces.length) return 0;
    this.watch.disconnect();
    this.late = [];
    const rows = pieces.flatMap((piece) => [...piece.tBodies[0].rows]);
    if (!table.isConnected) pieces[0].after(table); // it has become a part of the first piece
    table.tHead.replaceWith(head);
    table.tBodies[0].prepend(...rows);
    pieces.splice(0).forEach((piece) => piece.remove());
    return rows.length;
  }
}
