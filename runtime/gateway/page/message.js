/** A message on the page: its text, its files, its tools and its other versions. */

import { AnswerView } from "./answer.js";
import { announce, copyButton, el, growing, isComposed, submitsOnEnter } from "./dom.js";
import { sized, t } from "./words.js";

/** One message of the path. */
export class MessageView {
  /**
   * @param {Object} message
   * @param {{edit: function(Object, string): string, turn: function(Object, number): void,
   *   following: function(function(): void): void}} actions `edit` returns why it did nothing
   */
  constructor(message, actions) {
    Object.assign(this, { message, actions });
    this.answer = message.role === "assistant" ? new AnswerView(message, actions.following) : null;
    this.versions = el("span", { class: "versions", role: "group", hidden: true });
    this.tools = this.answer?.tools ?? el("div", { class: "tools" });
    const who = this.answer ? message.model : t("You");
    this.element = el("li", { class: `message ${message.role}` }, el("h2", {}, who), this.answer?.element ?? this.said());
    this.tools.prepend(this.versions);
  }

  said() {
    const { content, files = [] } = this.message;
    const edit = el("button", { type: "button", class: "quiet small", onclick: () => this.edit(), "data-edit": "" }, t("Edit"));
    this.tools.append(copyButton(() => content), edit);
    this.text = el("div", { class: "said", dir: "auto", hidden: !content }, content);
    this.place = el("div", {}, this.text);
    return [files.length ? el("ul", { class: "files" }, files.map((file) => el("li", {}, fileNode(file)))) : null,
      this.place, el("div", { class: "foot" }, this.tools)].filter(Boolean);
  }

  /** Show which of the versions this one is; the buttons lead to the others. */
  showVersions(siblings) {
    const at = siblings.indexOf(this.message);
    const shown = `${at + 1}/${siblings.length}`;
    if (this.versions.dataset.shown === shown) return;
    this.versions.dataset.shown = shown;
    this.versions.hidden = siblings.length < 2;
    this.versions.setAttribute("aria-label", t("Version {at} of {count}", { at: at + 1, count: siblings.length }));
    const to = (step, sign, label) => el("button", {
      type: "button", class: "quiet small", "aria-label": t(label), disabled: !siblings[at + step],
      onclick: () => this.actions.turn(this.message, step), "data-turn": step,
    }, sign);
    this.versions.replaceChildren(to(-1, "‹", "Previous version"), el("span", {}, shown), to(1, "›", "Next version"));
  }

  /** Replace the text by a field; the text that is sent becomes another version of the message. */
  edit() {
    const edited = this.place.querySelector("textarea");
    if (edited) return edited.focus();
    this.problem = el("p", { class: "error", role: "alert" });
    const area = el("textarea", { value: this.message.content, "aria-label": t("Message"), rows: 2, dir: "auto" });
    const end = () => {
      form.remove();
      this.text.hidden = !this.message.content;
      this.tools.hidden = false;
      this.tools.querySelector("[data-edit]").focus();
    };
    const cancel = el("button", { type: "button", class: "quiet", onclick: end }, t("Cancel"));
    const form = el("form", { class: "editing" }, area, this.problem,
      el("div", { class: "row" }, cancel, el("button", { type: "submit", class: "main" }, t("Send"))));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const content = area.value.trim();
      if (content || this.message.files?.length) this.say(this.actions.edit(this.message, content));
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || isComposed(event)) return;
      event.stopPropagation(); // else Escape would stop an answer as well
      end();
    });
    submitsOnEnter(area);
    this.text.hidden = this.tools.hidden = true;
    this.place.append(form);
    growing(area)();
    area.focus();
    announce(t("Editing: what you send becomes another version, and the first one stays"));
  }

  /** Say why a changed text is not sent. */
  say(problem) {
    if (this.problem) this.problem.textContent = problem;
  }

  /** Offer the buttons that only the end of a conversation has. */
  offer(buttons) {
    this.tools.querySelectorAll("[data-last]").forEach((button) => button.remove());
    this.tools.append(...buttons);
  }
}

/** A file of a message: a picture as it is, a text folded. */
export function fileNode({ kind, name, data, size }) {
  const title = `${name} · ${sized(size)}`;
  if (kind === "image") return el("figure", { class: "picture-file" }, el("img", { src: data, alt: name }), el("figcaption", {}, title));
  return el("details", { class: "text-file" }, el("summary", {}, title), el("pre", { tabIndex: 0 }, data));
}
