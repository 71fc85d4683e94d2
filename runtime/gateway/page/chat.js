/** The view Chat: conversations, each with one model at a time. */

import { canContinue, newAnswer, receive, spoken } from "./answer.js";
import { Attachments } from "./attachments.js";
import { ContextMeter } from "./context_meter.js";
import { announce, el, growing, onEscape, part, submitsOnEnter } from "./dom.js";
import { focusField } from "./focus.js";
import { History } from "./history.js";
import { HistoryPanel } from "./history_panel.js";
import { keep, kept } from "./kept.js";
import { MessageList } from "./message_list.js";
import { Picker } from "./picker.js";
import { SendOrStop } from "./send_or_stop.js";
import { Settings } from "./settings.js";
import { loadThread, rename, save, trim } from "./store.js";
import { SystemMessage } from "./system_message.js";
import { Thread, turnsOf } from "./thread.js";
import { download, fileName, jsonOf, markdownOf } from "./thread_export.js";
import { t } from "./words.js";

const SAVED_MS = 2000; // the time between two saves of a growing answer

/** The open conversation and its actions. */
export class Chat {
  constructor(root, bases) {
    this.thread = new Thread();
    this.running = new Map(); // by conversation: the answer that is being written
    this.list = new MessageList(root, {
      actions: { edit: (message, content) => this.edit(message, content), turn: (message, step) => this.turn(message, step) },
      isWritten: (message) => this.running.get(this.thread.id)?.answer === message,
    });
    this.empty = part(root, "empty");
    this.form = part(root, "form");
    this.area = this.form.querySelector("textarea");
    this.fit = growing(this.area);
    this.buttons = new SendOrStop(this.form, this.area);
    this.meter = new ContextMeter(part(root, "context"));
    this.picker = new Picker(part(root, "picker"), { name: "chat", bases, onchange: () => this.modelChanged() });
    this.settings = new Settings(part(root, "settings"), { name: "chat", onchange: () => this.settingsChanged() });
    this.system = new SystemMessage(part(root, "system"), this.settings);
    this.attached = new Attachments(root, this.area, { model: () => this.picker.id, changed: () => this.measure() });
    this.panel = new HistoryPanel(root);
    this.history = new History(part(root, "history"), {
      open: (id) => this.open(id),
      rename: (id, title) => this.rename(id, title),
      listed: (records) => this.listed(records),
      removed: (id) => this.removed(id),
      download: (kind) => this.download(kind),
    });
    this.listen(root);
    this.ready = this.restore();
  }

  listen(root) {
    submitsOnEnter(this.area);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.area.addEventListener("input", () => this.measure());
    this.buttons.stop.addEventListener("click", () => this.stop());
    part(root, "clear").addEventListener("click", () => this.create());
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
    this.place(found ? new Thread(found.record, found.messages) : new Thread());
  }

  /** Show another conversation. */
  show(thread) {
    if (this.system.leave(this.thread)) this.keep(this.thread, [], false);
    if (thread.id === this.thread.id) thread.system = this.thread.system; // it is opened again
    this.place(thread);
    this.system.enter(thread);
  }

  /** Put a conversation on the page. */
  place(thread) {
    this.thread = thread;
    keep("thread", thread.id);
    this.list.show(thread);
    this.refresh();
    this.list.scroll.toEnd();
    this.history.load(thread.id);
  }

  async open(id) {
    const running = this.running.get(id);
    const found = running ? null : await loadThread(id);
    if (running || found) this.show(running?.thread ?? new Thread(found.record, found.messages));
    else this.history.load(); // another tab has deleted it
    this.panel.uncover();
    this.rest();
  }

  create() {
    this.show(new Thread());
    this.panel.uncover();
    this.rest();
    announce(t("New chat"));
  }

  /** Focus the message field, or on a touch screen what is said. */
  rest() {
    focusField(this.area, this.list.log);
  }

  search() {
    this.panel.show(true);
    this.history.field.focus();
  }

  write() {
    this.panel.uncover();
    this.area.focus();
  }

  editLast() {
    this.panel.uncover();
    this.list.views.findLast(({ answer }) => !answer)?.edit();
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
    this.system.putInto(this.thread);
    download(isMarkdown ? markdownOf(this.thread) : jsonOf(this.thread), fileName(this.thread, kind), isMarkdown ? "text/markdown" : "application/json");
  }

  /** Send the typed message with its files, once they are read, unless an answer is running. */
  async send() {
    const { thread } = this;
    if (this.isRunning) return this.sayBusy();
    if (this.attached.isReading && !(await this.attached.settled())) return;
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
    if (this.isRunning) return busy();
    if (this.isRefused()) return "";
    const { files } = message;
    this.begin(this.thread.add({ role: "user", content, ...(files ? { files } : {}) }, message.parent));
    this.rest();
    return "";
  }

  /** Show the previous or the next version of a message, with what follows it. */
  turn(message, step) {
    if (this.isRunning) return this.sayBusy();
    const siblings = this.thread.siblings(message);
    const next = siblings[siblings.indexOf(message) + step];
    if (!next) return;
    this.thread.choose(next);
    this.list.scroll.following(() => this.list.sync());
    this.refresh();
    this.keep(this.thread, []);
    const tools = this.list.viewOf(next).versions;
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
    this.rest();
  }

  /** Have the last answer continued from where it ended. */
  proceed() {
    const { last } = this.thread;
    if (this.isRunning || !canContinue(last) || this.isRefused()) return;
    this.receive(last, [last]);
    this.rest();
  }

  /** Fill an answer; `changed` are the messages that are new. The reader may leave meanwhile. */
  async receive(answer, changed) {
    const { thread } = this;
    const controller = new AbortController();
    const path = thread.path.slice(0, -1);
    const request = { messages: this.settings.withSystem(turnsOf(path)), sampling: this.settings.sampling() };
    this.system.putInto(thread);
    this.running.set(thread.id, { controller, thread, answer });
    this.list.sync();
    this.list.viewOf(answer).answer.open();
    this.refresh();
    this.list.scroll.toEnd();
    announce(t("Answering"));
    this.keep(thread, changed);
    const saving = setInterval(() => this.keep(thread, [answer], false), SAVED_MS);
    await receive(answer, request, controller.signal, () => this.list.viewOf(answer)?.answer.update());
    await this.list.viewOf(answer)?.answer.caughtUp(controller.signal);
    clearInterval(saving);
    this.running.delete(thread.id);
    thread.updated = Date.now();
    this.keep(thread, [answer]);
    if (thread !== this.thread) return; // the reader has opened another one
    this.list.scroll.following(() => this.list.viewOf(answer).answer.close());
    this.refresh();
    announce(spoken(answer));
  }

  get isRunning() {
    return this.running.has(this.thread.id);
  }

  stop() {
    this.running.get(this.thread.id)?.controller.abort();
  }

  /** Enable the buttons that can be used now. */
  refresh() {
    const isIdle = !this.isRunning;
    this.buttons.show(!isIdle);
    this.empty.hidden = !this.thread.isEmpty;
    if (isIdle) this.list.views.forEach((view) => view.say(""));
    if (isIdle) this.attached.unsay(busy());
    this.list.offer(isIdle && this.thread.last?.role === "assistant" ? this.lastButtons() : []);
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

  settingsChanged() {
    if (!this.history) return; // the view is not built yet
    this.system.show();
    this.measure();
  }

  /** Show how much of the context is used. */
  measure() {
    const { path } = this.thread;
    const files = this.attached.files.filter(({ kind }) => kind === "text");
    const last = path.findLast(({ used }) => used);
    const draft = [...(last ? [] : [this.settings.system.value]), this.area.value].filter(Boolean).join("\n\n");
    this.meter.soon({ model: this.picker.id, used: last?.used ?? 0, draft, files });
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

  sayBusy() {
    this.attached.say(busy());
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

/** Why nothing else is sent or shown while an answer is written. */
function busy() {
  return t("An answer is being written: wait for its end, or stop it.");
}
