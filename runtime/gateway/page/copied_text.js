/** Copies: a formula as its source, and a long answer that is still being written as the text that it is. */

import { el } from "./dom.js";

const OWN = "math, .frozen, .spacers"; // what a browser would copy in another way

/** Put the selection into the clipboard, where the browser would copy it in another way. */
export function copySources(event) {
  const selection = getSelection();
  if (event.target.closest?.("input, textarea") || selection.isCollapsed || !selection.rangeCount) return;
  const range = selection.getRangeAt(0).cloneRange();
  const first = formulaAt(range.startContainer);
  const last = formulaAt(range.endContainer);
  if (first) range.setStartBefore(first);
  if (last) range.setEndAfter(last);
  const content = el("div", { class: "copied" }, range.cloneContents());
  if (!content.querySelector(OWN)) return;
  content.querySelectorAll("math").forEach((formula) => formula.replaceWith(sourceOf(formula)));
  content.querySelectorAll(".frozen").forEach((lines) => lines.replaceWith(...lines.childNodes));
  content.querySelectorAll(".spacers").forEach((row) => row.remove());
  document.body.append(content);
  event.clipboardData.setData("text/plain", content.innerText);
  content.remove();
  event.clipboardData.setData("text/html", new XMLSerializer().serializeToString(content));
  event.preventDefault();
}

/** The formula that a node is in; a part of a formula is copied as the whole. */
function formulaAt(node) {
  const element = node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement;
  return element?.closest("math") ?? null;
}

/** A formula's source with its marks. */
export function sourceOf(formula) {
  return formula.querySelector("annotation")?.textContent ?? formula.textContent;
}
