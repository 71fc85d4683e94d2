/**
 * Finished items of a list, and finished rows of a table, laid out by themselves: a browser looks at
 * all items of a list and all cells of a table for each one that is added.
 */

import { el } from "./dom.js";
import { isSelected } from "./frozen_lines.js";

const ENOUGH = 40; // items or rows of a piece
const NEAR = 0.5; // pixels

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

  /** Make it one list again. */
  thaw() {
    const { list, place } = this;
    if (!place) return;
    const pieces = [...place.children].slice(0, -1);
    if (list.nodeName === "OL") list.start = pieces[0].start;
    list.prepend(...pieces.flatMap((piece) => [...piece.children]));
    place.replaceWith(list);
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
    }
    this.pieces.push(piece);
    this.apply(isFirst ? undefined : [piece]);
    table.before(piece);
    return count;
  }

  measure() {
    this.widths = [...this.table.tHead.rows[0].cells].map((cell) => cell.getBoundingClientRect().width);
    this.width = this.table.getBoundingClientRect().width;
  }

  /** Give pieces the widths of the table that grows. */
  apply(pieces = this.pieces) {
    for (const piece of pieces) {
      piece.style.width = `${this.width}px`;
      [...piece.firstChild.children].forEach((column, index) => { column.style.width = `${this.widths[index]}px`; });
    }
    this.spacers.forEach((spacer, index) => { spacer.style.width = `${this.widths[index]}px`; });
  }

  /** A wider cell has come, or the window has another width. */
  align() {
    if (!this.pieces.length) return;
    if (this.table.parentElement.clientWidth !== this.available) return requestAnimationFrame(() => this.thawed(this.thaw()));
    const before = this.widths;
    this.measure();
    if (this.widths.some((width, index) => Math.abs(width - before[index]) > NEAR)) this.apply();
  }

  /** Make it one table again; returns the number of rows that come back. */
  thaw() {
    const { table, head, pieces } = this;
    if (!pieces.length) return 0;
    const rows = pieces.flatMap((piece) => [...piece.tBodies[0].rows]);
    table.tHead.replaceWith(head);
    table.tBodies[0].prepend(...rows);
    pieces.splice(0).forEach((piece) => piece.remove());
    this.watch.disconnect();
    return rows.length;
  }
}
