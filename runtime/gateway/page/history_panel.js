/** The place of the list of conversations: beside the chat, or in a narrow window in front of it. */

import { isComposed, part } from "./dom.js";
import { focusField } from "./focus.js";
import { keep, kept } from "./kept.js";

const WIDE = matchMedia("(min-width: 64rem)"); // windows with room for the list beside the chat

export class HistoryPanel {
  constructor(root) {
    this.root = root;
    this.panel = part(root, "history");
    this.toggle = part(root, "history-toggle");
    this.search = this.panel.querySelector("[type=search]");
    this.toggle.addEventListener("click", () => this.turn());
    this.panel.addEventListener("keydown", (event) => this.leave(event));
    WIDE.addEventListener("change", () => this.fit());
    this.fit();
  }

  /** Show the list where it has room, unless the reader has closed it there. */
  fit() {
    this.show(WIDE.matches && kept("history", true));
  }

  turn() {
    this.show(this.panel.hidden);
    // in front of the chat, the list comes before the button: Tab would not lead to it
    if (!WIDE.matches && !this.panel.hidden) focusField(this.search, this.toggle);
  }

  show(isShown) {
    const hadFocus = this.panel.contains(document.activeElement);
    this.panel.hidden = !isShown;
    this.toggle.setAttribute("aria-expanded", String(isShown));
    this.root.classList.toggle("listing", isShown);
    if (!isShown && hadFocus) this.toggle.focus();
    if (WIDE.matches) keep("history", isShown);
  }

  /** Show the chat again where the list is in front of it. */
  uncover() {
    if (!WIDE.matches) this.show(false);
  }

  /** Escape leaves the list where it is in front of the chat. */
  leave(event) {
    if (event.key !== "Escape" || isComposed(event) || WIDE.matches) return;
    event.stopPropagation(); // else Escape would stop an answer as well
    this.uncover();
  }
}
