/**
 * Finished lines of a paragraph, laid out by themselves: a browser lays out a paragraph as a whole,
 * and a long one would take longer than a frame. They end where a line ends on the page, so that
 * nothing moves, and each space stays, so that a copy has the same text.
 */

import { el } from "./dom.js";

const LOOKED_BACK = 80; // nodes in which a line's end is looked for
const asked = document.createRange(); // only one: a browser updates each of them at every change

/** Whether the reader has selected something in `element`: then its nodes stay where they are. */
export function isSelected(element) {
  const selection = getSelection();
  return selection.rangeCount > 0 && !selection.isCollapsed && selection.getRangeAt(0).intersectsNode(element);
}

/**
 * Put the nodes of a paragraph from `first` up to the last line's end before `limit` into an element
 * of their own, and return it; null where no line ends there.
 * @param {Node} first
 * @param {Node|null} limit
 */
export function freezeLines(first, limit) {
  const after = lineEndBefore(limit, first);
  if (!after) return null;
  const lines = el("span", { class: "frozen" });
  first.before(lines);
  const nodes = [];
  for (let node = first; node !== after; node = node.nextSibling) nodes.push(node);
  lines.append(...nodes);
  return lines;
}

/** Put the nodes of all frozen lines back into their paragraph; returns whether there were any. */
export function thaw(paragraph) {
  const nodes = [...paragraph.childNodes];
  const flat = nodes.flatMap((node) => (node.className === "frozen" ? [...node.childNodes] : [node]));
  if (flat.length === nodes.length) return false;
  const selection = isSelected(paragraph) ? getSelection() : null;
  const { anchorNode, anchorOffset, focusNode, focusOffset } = selection ?? {};
  paragraph.replaceChildren(...flat);
  if (selection && anchorNode.isConnected && focusNode.isConnected) selection.setBaseAndExtent(anchorNode, anchorOffset, focusNode, focusOffset);
  return true;
}

/** The first node after the last line that ends between `first` and `limit`; a text is split for it. */
function lineEndBefore(limit, first) {
  let node = limit ? limit.previousSibling : first.parentNode.lastChild;
  for (let looked = 0; node && node !== first && looked < LOOKED_BACK; looked += 1) {
    if (node.nodeName === "BR") return node.nextSibling;
    if (node.nodeType === Node.TEXT_NODE) {
      const found = splitAtLineEnd(node);
      if (found) return found;
    }
    node = node.previousSibling;
  }
  return node === first && node.nodeType === Node.TEXT_NODE ? splitAtLineEnd(node) : null;
}

/** Split a text where its last line begins, apart from the space there; null for a text of one line. */
function splitAtLineEnd(node) {
  const offset = lastLineOf(node);
  asked.setStart(document, 0);
  asked.collapse(true);
  if (!offset) return null;
  const rest = node.splitText(offset);
  if (/\s/.test(rest.data[0])) rest.splitText(1); // the space between the lines
  return rest;
}

/** Where the last line of a text begins, or the space before it; 0 for a text of one line. */
function lastLineOf(node) {
  const { data } = node;
  const rectsFrom = (offset) => {
    asked.setStart(node, offset);
    asked.setEnd(node, data.length);
    return [...asked.getClientRects()].filter(({ width }) => width > 0);
  };
  const rects = rectsFrom(0);
  if (!rects.length || rects.at(-1).top - rects[0].top < 1) return 0;
  const { top } = rects.at(-1);
  let [low, high] = [1, data.length - 1]; // the first offset whose text is only on the last line
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((rectsFrom(middle)[0]?.top ?? top) >= top - 1) high = middle;
    else low = middle + 1;
  }
  if (/\s/.test(data[low - 1])) low -= 1;
  return low >= data.length - 1 || /[\ud800-\udbff\u00ad\u200d]/.test(data[low - 1]) ? 0 : low;
}
