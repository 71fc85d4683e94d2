/** The system message, in view above the conversation: each conversation has its own. */

import { el } from "./dom.js";
import { t } from "./words.js";

export class SystemMessage {
  /**
   * @param {Element} line what shows the message, and leads to its field
   * @param {Settings} settings they have the field
   */
  constructor(line, settings) {
    Object.assign(this, { line, settings });
    this.ofNewChat = null; // what stood in the field of a new chat before another conversation was opened
    line.addEventListener("click", () => settings.reveal());
    this.show();
  }

  get text() {
    return this.settings.system.value.trim();
  }

  show() {
    this.line.hidden = !this.text;
    this.line.replaceChildren(el("strong", {}, t("System message")), el("span", { dir: "auto" }, this.text));
  }

  /** Keep the text for the conversation that is left; returns whether that changes the conversation. */
  leave(thread) {
    if (thread.isEmpty) this.ofNewChat = this.text;
    return !thread.isEmpty && thread.system !== null && this.putInto(thread);
  }

  /** Make the text the conversation's; returns whether it had another one. */
  putInto(thread) {
    const isNew = thread.system !== this.text;
    thread.system = this.text;
    return isNew;
  }

  /** Put the text of the conversation that is opened into the field. A conversation that knows none leaves it. */
  enter(thread) {
    const text = thread.isEmpty ? this.ofNewChat : thread.system;
    if (thread.isEmpty) this.ofNewChat = null;
    if (text !== null && text !== this.text) this.settings.setSystem(text);
  }
}
