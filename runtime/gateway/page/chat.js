/** The view Chat: conversations, each with one model at a time. */

import { canContinue, newAnswer, receive } from "./answer.js";
import { Attachments } from "./attachments.js";
import { ContextMeter } from "./context_meter.js";
import { announce, el, growing, onEscape, part, submitsOnEnter } from "./dom.js";
import { History } from "./history.js";
import { keep, kept } from "./kept.js";
import { LogScroll } from "./log_scroll.js";
import { MessageView } from "./message.js";
import { Picker } from "./picker.js";
import { Settings } from "./settings.js";
import { loadThread, rename, save, trim } from "./store.js";
import { Thread, turnsOf } from "./thread.js";
import { download, fileName, jsonOf, markdownOf } from "./thread_export.js";
import { t } from "./words.js";

const READ_OUT = 600; // characters; a screen reader announces only the end of longer answers
const AT_ONCE = 60; // messages that are put on the page; scrolling up adds earlier ones
const SAVED_MS = 2000; // the time between two saves of a growing answer
const WIDE = matchMedia("(min-width: 64rem)"); // windows with room for the list beside the chat

/** The open conversation and its actions. */
export class Chat {
  constructor(root, bases) {
    this.root = root;
    this.thread = new Thread();
    this.views = []; // those on the page, in order
    this.running = new Map(); // by conversation: the answer that is being written
    this.log = part(root, "log");
    this.list = part(root, "messages");
    this.scroll = new LogScroll(this.log, this.list);
    this.empty = part(root, "empty");
    this.earlier = part(root, "earlier");
    this.form = part(root, "form");
    this.area = this.form.querySelector("textarea");
    this.fit = growing(this.area);
    this.sendButton = part(root, "send");
    this.stopButton = part(root, "stop");
    this.systemLine = part(root, "system");
    this.meter = new ContextMeter(part(root, "context"));
    this.picker = new Picker(part(root, "picker"), { name: "chat", bases, onchange: () => this.modelChanged() });
    this.settings = new Settings(part(root, "settings"), { name: "chat", onchange: () => this.showSystem() });
    this.attached = new Attachments(root, this.area, { model: () => this.picker.id, changed: () => this.measure() });
    this.history = new History(part(root, "history"), {
      open: (id) => this.open(id),
      rename: (id, title) => this.rename(id, title),
      listed: (records) => this.listed(records),
      removed: (id) => this.removed(id),
      download: (kind) => this.download(kind),
    });
    this.actions = {
      edit: (message, content) => this.edit(message, content),
      turn: (message, step) => this.turn(message, step),
      following: (change) => this.scroll.followingFrame(change),
    };
    this.showSystem();
    this.listen(root);
    this.fitHistory();
    this.ready = this.restore();
  }

  listen(root) {
    submitsOnEnter(this.area);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.area.addEventListener("input", () => this.measure());
    this.stopButton.addEventListener("click", () => this.stop());
    this.systemLine.addEventListener("click", () => this.settings.reveal());
    this.earlier.addEventListener("click", () => this.showEarlier());
    new IntersectionObserver(([{ isIntersecting }]) => { if (isIntersecting) this.showEarlier(); }, { root: this.log, rootMargin: "600px" })
      .observe(this.earlier);
    part(root, "clear").addEventListener("click", () => this.create());
    part(root, "history-toggle").addEventListener("click", () => this.showHistory(part(root, "history").hidden));
    WIDE.addEventListener("change", () => this.fitHistory());
    window.addEventListener("pagehide", () => this.keepUnsaved());
    onEscape(root, () => this.stop());
  }

  /** Open the conversation that this tab had open, with what was not saved when it was left. */
  async restore() {
    for (const { record, messages } of kept("unsaved", []) ?? []) await save(record, messages).catch(() => {});
    keep("unsaved", null);
    this.area.value = kept("draft", "");
    this.fit();
    const found = await loadThread(kept("thread", ""));
    this.show(found ? new Thread(found.record, found.messages) : new Thread());
  }

  /** Put a conversation on the page. */
  show(thread) {
    this.thread = thread;
    keep("thread", thread.id);
    this.views.splice(0).forEach((view) => this.take(view));
    this.first = Math.max(0, thread.path.length - AT_ONCE);
    this.sync();
    this.refresh();
    this.scroll.toEnd();
    this.history.load(thread.id);
  }

  async open(id) {
    const running = this.running.get(id);
    const found = running ? null : await loadThread(id);
    if (running || found) this.show(running?.thread ?? new Thread(found.record, found.messages));
    else this.history.load(); // another tab has deleted it
    if (!WIDE.matches) this.showHistory(false);
    this.area.focus();
  }

  create() {
    this.show(new Thread());
    if (!WIDE.matches) this.showHistory(false);
    this.area.focus();
    announce(t("New chat"));
  }

  search() {
    this.showHistory(true);
    this.history.field.focus();
  }

  editLast() {
    this.views.findLast(({ answer }) => !answer)?.edit();
  }

  async rename(id, title) {
    await rename(id, title).catch(() => this.sayUnkept());
    this.history.share();
  }

  /** The list is loaded: the reader may have renamed the open conversation, also in another tab. */
  listed(records) {
    const found = records.find(({ id }) => id === this.thread.id);
    if (found?.isNamed) this.thread.rename(found.title);
  }

  /** A conversation is deleted, or all of them where `id` is null. */
  removed(id) {
    for (const [name, { thread, controller }] of this.running) {
      if (id !== null && id !== name) continue;
      thread.isDeleted = true;
      controller.abort();
    }
    if (id !== null && id !== this.thread.id) return;
    this.thread.isDeleted = true;
    this.show(new Thread());
  }

  download(kind) {
    const isMarkdown = kind === "md";
    download(isMarkdown ? markdownOf(this.thread) : jsonOf(this.thread), fileName(this.thread, kind), isMarkdown ? "text/markdown" : "application/json");
  }

  /** Send the typed message with its files, once they are read, unless an answer is running. */
  async send() {
    const { thread } = this;
    if (this.isRunning || (this.attached.isReading && !(await this.attached.settled()))) return;
    if (this.isRunning || thread !== this.thread) return; // by now
    const content = this.area.value.trim();
    if ((!content && !this.attached.files.length) || this.isRefused()) return;
    const files = this.attached.takeAll();
    this.area.value = "";
    this.fit();
    this.begin(this.thread.add({ role: "user", content, ...(files.length ? { files } : {}) }));
  }

  /** Whether settings or files keep a message from being sent; the reader sees why. */
  isRefused() {
    const problem = this.attached.problem(this.thread.path);
    this.attached.say(problem);
    if (problem) announce(problem);
    if (!this.settings.problem()) return Boolean(problem);
    this.settings.reveal();
    return true;
  }

  /** Send a changed message as another version, at which the conversation branches; or say why not. */
  edit(message, content) {
    if (this.isRunning) return t("An answer is being written: send this when it has ended, or stop it.");
    if (this.isRefused()) return "";
    const { files } = message;
    this.begin(this.thread.add({ role: "user", content, ...(files ? { files } : {}) }, message.parent));
    this.area.focus();
    return "";
  }

  /** Show the previous or the next version of a message, with what follows it. */
  turn(message, step) {
    if (this.isRunning) return;
    const siblings = this.thread.siblings(message);
    const next = siblings[siblings.indexOf(message) + step];
    if (!next) return;
    this.thread.choose(next);
    this.scroll.following(() => this.sync());
    this.refresh();
    this.keep(this.thread, []);
    const tools = this.viewOf(next).versions;
    (tools.querySelector(`[data-turn="${step}"]:enabled`) ?? tools.querySelector("button:enabled")).focus();
    announce(tools.getAttribute("aria-label"));
  }

  /** Ask the picked model to answer `message`, the end of the path. */
  begin(message) {
    const answer = this.thread.add(newAnswer(this.picker.id), message.id);
    return this.receive(answer, [message, answer]);
  }

  /** Ask for another version of the last answer. */
  regenerate() {
    const { last } = this.thread;
    if (this.isRunning || last?.role !== "assistant" || this.isRefused()) return;
    const answer = this.thread.add(newAnswer(this.picker.id), last.parent);
    this.receive(answer, [answer]);
    this.area.focus();
  }

  /** Have the last answer continued from where it ended. */
  proceed() {
    const { last } = this.thread;
    if (this.isRunning || !canContinue(last) || this.isRefused()) return;
    this.receive(last, [last]);
    this.area.focus();
  }

  /** Fill an answer; `changed` are the messages that are new. The reader may leave meanwhile. */
  async receive(answer, changed) {
    const { thread } = this;
    const controller = new AbortController();
    const path = thread.path.slice(0, -1);
    const request = { messages: this.settings.withSystem(turnsOf(path)), sampling: this.settings.sampling() };
    this.running.set(thread.id, { controller, thread, answer });
    this.sync();
    this.viewOf(answer).answer.open();
    this.refresh();
    this.scroll.toEnd();
    announce(t("Answering"));
    this.keep(thread, changed);
    const saving = setInterval(() => this.keep(thread, [answer], false), SAVED_MS);
    await receive(answer, request, controller.signal, () => this.viewOf(answer)?.answer.update());
    await this.viewOf(answer)?.answer.caughtUp(controller.signal);
    clearInterval(saving);
    this.running.delete(thread.id);
    thread.updated = Date.now();
    this.keep(thread, [answer]);
    if (thread !== this.thread) return; // the reader has opened another one
    this.scroll.following(() => this.viewOf(answer).answer.close());
    this.refresh();
    announce(spoken(answer));
  }

  get isRunning() {
    return this.running.has(this.thread.id);
  }

  stop() {
    this.running.get(this.thread.id)?.controller.abort();
  }

  viewOf(message) {
    return this.views.findLast((view) => view.message === message);
  }

  /** Make the views on the page those of the path, from the first one shown on. */
  sync() {
    const path = this.thread.path.slice(this.first);
    let same = 0;
    while (same < this.views.length && this.views[same].message === path[same]) same += 1;
    this.views.splice(same).forEach((view) => this.take(view));
    for (const message of path.slice(same)) {
      const view = this.viewFor(message);
      this.views.push(view);
      this.list.append(view.element);
    }
    this.views.forEach((view) => view.showVersions(this.thread.siblings(view.message)));
    this.earlier.hidden = this.first === 0;
  }

  viewFor(message) {
    const view = new MessageView(message, this.actions);
    if (this.running.get(this.thread.id)?.answer === message) view.answer.open();
    return view;
  }

  /** Take a view off the page. */
  take(view) {
    view.answer?.leave();
    view.element.remove();
  }

  /** Put earlier messages on the page, above those that are there; what is read stays in place. */
  showEarlier() {
    const from = Math.max(0, this.first - AT_ONCE);
    const views = this.thread.path.slice(from, this.first).map((message) => this.viewFor(message));
    if (!views.length) return;
    const anchor = this.list.firstElementChild;
    const before = anchor.getBoundingClientRect().top;
    views.forEach((view) => view.showVersions(this.thread.siblings(view.message)));
    this.list.prepend(...views.map(({ element }) => element));
    this.views.unshift(...views);
    this.first = from;
    this.earlier.hidden = from === 0;
    this.scroll.scroller.scrollTop += anchor.getBoundingClientRect().top - before;
  }

  /** Enable the buttons that can be used now. */
  refresh() {
    const isIdle = !this.isRunning;
    const hadFocus = document.activeElement === this.stopButton;
    this.sendButton.hidden = !isIdle;
    this.stopButton.hidden = isIdle;
    this.empty.hidden = !this.thread.isEmpty;
    if (isIdle) this.views.forEach((view) => view.say(""));
    this.views.slice(-3).forEach((view) => view.offer([])); // no earlier message has buttons
    if (isIdle && this.thread.last?.role === "assistant") this.views.at(-1).offer(this.lastButtons());
    if (isIdle && hadFocus) this.area.focus();
    this.measure();
  }

  lastButtons() {
    const button = (text, act, name) => el("button", { type: "button", class: "quiet small", onclick: act, "data-last": "", [name]: "" }, t(text));
    const proceed = canContinue(this.thread.last) ? [button("Continue", () => this.proceed(), "data-proceed")] : [];
    return [...proceed, button("Regenerate", () => this.regenerate(), "data-again")];
  }

  modelChanged() {
    this.attached.show();
    this.measure();
  }

  /** Show the system message above the conversation. */
  showSystem() {
    if (!this.settings) return; // the settings are not built yet
    const content = this.settings.system.value.trim();
    this.systemLine.hidden = !content;
    this.systemLine.replaceChildren(el("strong", {}, t("System message")), el("span", { dir: "auto" }, content));
    if (this.first !== undefined) this.measure();
  }

  /** Show how much of the context is used. */
  measure() {
    const { path } = this.thread;
    const files = this.attached.files.filter(({ kind }) => kind === "text");
    const last = path.findLast(({ used }) => used);
    const draft = [...(last ? [] : [this.settings.system.value]), this.area.value].filter(Boolean).join("\n\n");
    this.meter.soon({ model: this.picker.id, used: last?.used ?? 0, draft, files });
  }

  /** Show the list where it has room, unless the reader has closed it there. */
  fitHistory() {
    this.showHistory(WIDE.matches && kept("history", true));
  }

  showHistory(isShown) {
    part(this.root, "history").hidden = !isShown;
    part(this.root, "history-toggle").setAttribute("aria-expanded", String(isShown));
    this.root.classList.toggle("listing", isShown);
    if (WIDE.matches) keep("history", isShown);
  }

  /** Keep what has changed in a conversation; `isListed` is whether the list shows it, too. */
  async keep(thread, messages, isListed = true) {
    if (thread.isEmpty || thread.isDeleted) return;
    try {
      await save(thread.record, messages, [...thread.messages.values()]);
      if (isListed && thread.messages.size <= 2) await trim(thread.id);
    } catch {
      this.sayUnkept();
    }
    if (!isListed) return;
    this.history.share();
    await this.history.load(this.thread.id);
  }

  sayUnkept() {
    this.attached.say(t("This browser does not keep the conversation: it has no room for it, or keeps nothing."));
  }

  /** The reader leaves the page: keep what may be unsaved, for this tab's next page. */
  keepUnsaved() {
    keep("draft", this.area.value || null);
    const unsaved = [...this.running.values()].map(({ thread, answer }) => ({ record: thread.record, messages: [answer] }));
    keep("unsaved", unsaved.length ? unsaved : null);
  }
}

/** The text for a screen reader when an answer has ended. */
function spoken({ content, error, isStopped }) {
  if (error) return t("No answer: {why}", { why: error });
  if (isStopped) return t("Stopped");
  return content.length <= READ_OUT ? content : t("The answer is complete");
}
