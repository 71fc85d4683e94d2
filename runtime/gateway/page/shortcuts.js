/** Keys that work wherever nothing is typed, and the list of all keys, which `?` opens. */

import { el, isComposed, part } from "./dom.js";
import { keep, kept } from "./kept.js";
import { t } from "./words.js";

/** The single keys: what each does, and how the list names that. */
const SINGLE = [
  ["?", (page) => page.help(), "Show this list"],
  ["/", (page) => page.chat().search(), "Search the conversations"],
  ["n", (page) => page.chat().create(), "Begin a new chat"],
  ["m", (page) => page.chat().write(), "Write a message"],
  ["e", (page) => page.chat().editLast(), "Edit your last message"],
];
const OTHERS = [
  ["Enter", "Send"],
  ["Shift+Enter", "Begin a new line"],
  ["Escape", "Stop the answer, or leave what is being edited or searched"],
  ["← →", "Move between the views, when one of their names has the focus"],
];
const TYPED = "input:not([type=checkbox], [type=range]), textarea, select, [contenteditable]";

/** Make the keys act on the view Chat. */
export function useShortcuts(chat) {
  return new Shortcuts(chat);
}

class Shortcuts {
  constructor(view) {
    this.view = view;
    this.dialog = document.getElementById("help-dialog");
    this.isOn = part(this.dialog, "single");
    this.isOn.checked = kept("shortcuts", true);
    this.isOn.addEventListener("change", () => keep("shortcuts", this.isOn.checked));
    const rows = [...SINGLE.map(([key, , what]) => [key, what]), ...OTHERS];
    part(this.dialog, "keys").replaceChildren(...rows.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, t(what))]));
    document.querySelector("[data-help]").addEventListener("click", () => this.help());
    document.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isComposed(event)) return;
    if (event.target.closest(TYPED) || document.querySelector("dialog[open]")) return;
    const found = SINGLE.find(([key]) => key === event.key);
    if (!found || !(this.isOn.checked || event.key === "?")) return;
    event.preventDefault();
    found[1](this);
  }

  help() {
    this.dialog.showModal();
  }

  /** The chat, brought to the front. */
  chat() {
    document.getElementById("tab-chat").click();
    return this.view;
  }
}
