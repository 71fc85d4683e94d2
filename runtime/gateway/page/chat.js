/** The view Chat: one conversation with one model at a time. */

import { AnswerView, newAnswer, receive } from "./answer.js";
import { announce, el, growing, part, submitsOnEnter } from "./dom.js";
import { keep, kept } from "./kept.js";
import { Picker } from "./picker.js";
import { Settings } from "./settings.js";

const NEAR_END = 60; // pixels; a reader who has scrolled further up stays there
const READ_OUT = 600; // characters; a screen reader announces only the end of longer answers

/** The conversation and its actions. */
export class Chat {
  constructor(root, bases) {
    this.picker = new Picker(part(root, "picker"), { name: "chat", bases });
    this.settings = new Settings(part(root, "settings"), { name: "chat" });
    this.log = part(root, "log");
    this.list = part(root, "messages");
    this.empty = part(root, "empty");
    this.form = part(root, "form");
    this.area = this.form.querySelector("textarea");
    this.fit = growing(this.area);
    this.sendButton = part(root, "send");
    this.stopButton = part(root, "stop");
    this.running = null;
    this.messages = [];
    this.listen(root);
    kept("chat", []).forEach((message) => this.add(message));
    this.refresh();
  }

  listen(root) {
    submitsOnEnter(this.area);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.stopButton.addEventListener("click", () => this.stop());
    part(root, "clear").addEventListener("click", () => this.clear());
    window.addEventListener("pagehide", () => this.keep());
    root.addEventListener("keydown", ({ key }) => { if (key === "Escape") this.stop(); });
  }

  /** Send the typed message, unless an answer is running. */
  send() {
    const content = this.area.value.trim();
    if (!content || this.running) return;
    this.area.value = "";
    this.fit();
    this.add({ role: "user", content });
    this.answer();
  }

  /** Ask the picked model to answer the conversation. */
  async answer() {
    const view = this.add(newAnswer(this.picker.id));
    const request = { messages: this.settings.withSystem(this.said()), sampling: this.settings.sampling() };
    const running = new AbortController();
    this.running = running;
    this.refresh();
    this.keep();
    view.open();
    announce("Answering");
    this.scrollToEnd();
    await receive(view.answer, request, running.signal, view.update);
    this.following(() => view.close());
    if (this.running !== running) return; // cleared in the meantime
    this.running = null;
    this.refresh();
    this.keep();
    announce(spoken(view.answer));
  }

  /** Ask for the last answer again. */
  regenerate() {
    if (this.running || this.messages.at(-1)?.role !== "assistant") return;
    this.messages.pop();
    this.list.lastElementChild.remove();
    this.answer();
    this.area.focus();
  }

  stop() {
    this.running?.abort();
  }

  clear() {
    this.stop();
    this.running = null;
    this.messages = [];
    this.list.replaceChildren();
    this.refresh();
    this.keep();
    this.area.focus();
    announce("New chat");
  }

  /** The messages for the model; neighbours of one role are joined, as templates expect turns. */
  said() {
    const said = [];
    for (const { role, content } of this.messages) {
      if (!content) continue;
      if (said.at(-1)?.role === role) said.at(-1).content += `\n\n${content}`;
      else said.push({ role, content });
    }
    return said;
  }

  /** Append a message to the conversation; returns the view of an answer. */
  add(message) {
    const view = message.role === "assistant" ? new AnswerView(message, (change) => this.following(change)) : null;
    const body = view ? view.element : el("div", { class: "said", dir: "auto" }, message.content);
    const who = view ? message.model : "You";
    this.messages.push(message);
    this.list.append(el("li", { class: `message ${message.role}` }, el("h2", {}, who), body));
    return view;
  }

  /** Enable the buttons that can be used now. */
  refresh() {
    const isIdle = this.running === null;
    const hadFocus = document.activeElement === this.stopButton;
    this.sendButton.hidden = !isIdle;
    this.stopButton.hidden = isIdle;
    this.empty.hidden = this.messages.length > 0;
    this.list.querySelector("[data-again]")?.remove();
    if (isIdle && this.messages.at(-1)?.role === "assistant") this.offerAgain();
    if (isIdle && hadFocus) this.area.focus();
  }

  offerAgain() {
    const again = el("button", { type: "button", class: "quiet small", "data-again": "" }, "Regenerate");
    again.addEventListener("click", () => this.regenerate());
    this.list.lastElementChild.querySelector(".tools").append(again);
  }

  keep() {
    keep("chat", this.messages);
  }

  /** The element that scrolls: the log, or in a low window the whole page. */
  get scroller() {
    return getComputedStyle(this.log).overflowY === "visible" ? document.scrollingElement : this.log;
  }

  /** Call `change`, which alters the log's height; a log that was at its end stays there. */
  following(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    change();
    if (scrollHeight - scrollTop - clientHeight < NEAR_END) this.scrollToEnd();
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

/** The text for a screen reader when an answer has ended. */
function spoken({ content, error, isStopped }) {
  if (error) return `No answer: ${error}`;
  if (isStopped) return "Stopped";
  return content.length <= READ_OUT ? content : "The answer is complete";
}
