/** One answer: requested, received piece by piece, and shown. */

import { isAbort, modelStatus, streamed } from "./api.js";
import { afterFrame, copyButton, el, oncePerFrame } from "./dom.js";
import { LiveMarkdown } from "./live_markdown.js";
import { hasTemplate } from "./models.js";
import { counted, numeral, t } from "./words.js";

const PATIENCE_MS = 2000;
const FEWEST = 250; // characters that are added in one frame while the answer grows…
const MOST = 600; // …and what is added where frames are quick
const QUICK_MS = 9; // of a frame's 16: the rest is for the reader
const CATCH_UP_MS = 3000; // what is not shown by then is shown at once
const READ_OUT = 600; // characters; a screen reader announces only the end of longer answers
const RAW_TOKENS = 256; // the limit of an answer without a chat template, as in `decant chat`

/**
 * An answer before its first piece.
 * @param {string} model
 */
export function newAnswer(model) {
  return { role: "assistant", model, content: "", reasoning: "", finish: null, tokens: null, used: null, speed: null, error: null, isRaw: false, isStopped: false };
}

/** Whether an answer ended before the model ended it, and has a text to continue. */
export function canContinue({ content, finish, error, isStopped }) {
  return content !== "" && (isStopped || error !== null || finish === "length");
}

/**
 * Fill `answer` from the server, calling `changed` after each piece. It does not throw: an error
 * becomes part of the answer. A model without a chat template continues the text. An answer that
 * already has a text is continued.
 */
export async function receive(answer, { messages, sampling }, signal, changed) {
  const clock = { began: null, before: answer.content ? answer.tokens ?? 0 : 0 };
  const [route, body] = requestOf(answer, messages, sampling);
  try {
    for await (const event of streamed(route, body, signal)) {
      take(answer, event, clock);
      changed();
    }
  } catch (error) {
    if (isAbort(error)) answer.isStopped = true;
    else answer.error = error.message;
  }
}

function requestOf(answer, messages, sampling) {
  const body = { model: answer.model, ...sampling, stream: true, stream_options: { include_usage: true } };
  const { content } = answer;
  Object.assign(answer, { isRaw: !hasTemplate(answer.model), finish: null, error: null, isStopped: false });
  if (answer.isRaw) {
    const { response_format: format, ...rest } = body;
    const schema = format ? { json_schema: format.json_schema.schema } : {};
    return ["v1/completions", { max_tokens: RAW_TOKENS, ...rest, ...schema, prompt: textOf(messages) + content }];
  }
  if (!content) return ["v1/chat/completions", { ...body, messages }];
  const begun = { messages: [...messages, { role: "assistant", content }], continue_final_message: true, add_generation_prompt: false };
  return ["v1/chat/completions", { ...body, ...begun }];
}

/** The texts of all messages, joined by line breaks. */
function textOf(messages) {
  const texts = ({ content }) => (typeof content === "string" ? content : content.map(({ text = "" }) => text).join(""));
  return messages.map(texts).join("\n");
}

/** Add one event of the stream. */
function take(answer, event, clock) {
  const [choice] = event.choices ?? [];
  const text = choice?.delta?.content ?? choice?.text ?? "";
  const thought = choice?.delta?.reasoning_content ?? "";
  if (text || thought) clock.began ??= performance.now();
  answer.content += text;
  answer.reasoning += thought;
  answer.finish = choice?.finish_reason ?? answer.finish;
  if (event.usage) {
    answer.tokens = clock.before + event.usage.completion_tokens;
    answer.used = (event.usage.prompt_tokens ?? 0) + event.usage.completion_tokens;
  }
  answer.speed = event.timings?.predicted_per_second ?? answer.speed;
  if (event.usage && answer.speed === null && clock.began !== null) {
    answer.speed = ((answer.tokens - clock.before) * 1000) / Math.max(performance.now() - clock.began, 1);
  }
}

/** The line under an answer: its length and speed, and why it ended early. */
export function factsOf({ tokens, speed, finish, isRaw, isStopped }) {
  const facts = [];
  if (isRaw) facts.push(t("the model has no chat template: it continues the text"));
  if (tokens !== null) facts.push(counted(tokens, "1 token", "{count} tokens"));
  if (tokens > 1 && Number.isFinite(speed)) facts.push(t("{speed} tokens/s", { speed: rounded(speed) }));
  if (finish === "length") facts.push(t("cut off at the token limit"));
  if (isStopped) facts.push(t("stopped by you"));
  return facts;
}

function rounded(speed) {
  const digits = speed < 100 ? 1 : 0;
  return numeral(speed, { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: false });
}

/** The text for a screen reader when an answer has ended. */
export function spoken({ content, error, isStopped }) {
  if (error) return t("No answer: {why}", { why: error });
  if (isStopped) return t("Stopped");
  return content.length <= READ_OUT ? content : t("The answer is complete");
}

/** Make `text` the text of an element; the same text leaves the element alone. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** An answer on the page. */
export class AnswerView {
  /**
   * @param {Object} answer shown now, and again by `update`
   * @param {function(function(): void): void} [around] calls the function that changes the element
   */
  constructor(answer, around = (change) => change()) {
    this.answer = answer;
    this.thoughts = el("div", { class: "markdown" });
    this.reasoning = el("details", { class: "reasoning", hidden: true }, el("summary", {}, t("Reasoning")), this.thoughts);
    this.body = el("div", { class: "markdown", dir: "auto" });
    this.waiting = el("p", { class: "waiting" });
    this.error = el("p", { class: "error" });
    this.facts = el("p", { class: "facts" });
    this.copy = copyButton(() => answer.content);
    this.tools = el("div", { class: "tools" }, this.copy);
    const foot = el("div", { class: "foot" }, this.facts, this.tools);
    this.element = el("div", { class: "answer" }, this.reasoning, this.body, this.waiting, this.error, foot);
    this.live = { body: new LiveMarkdown(this.body), thoughts: new LiveMarkdown(this.thoughts) };
    this.isOpen = false;
    this.shown = { body: 0, thoughts: 0 }; // the characters of each text that are on the page
    this.step = MOST;
    this.before = this.patience = "";
    /** Why the answer waits, where the page knows it. */
    this.note = "";
    this.update = oncePerFrame(() => {
      if (!this.isOpen) return;
      const began = performance.now();
      around(() => this.show());
      afterFrame(() => this.adapt(performance.now() - began));
    });
    this.show();
  }

  /** Show that the answer is awaited, and after a while for how long. */
  open() {
    const began = performance.now();
    this.isOpen = true;
    this.before = this.answer.content;
    this.element.setAttribute("aria-busy", "true");
    this.timer = setInterval(() => {
      const waited = performance.now() - began;
      if (waited > PATIENCE_MS && this.isAwaited) this.beWaited(Math.floor(waited / 1000));
    }, 1000);
    this.show();
  }

  /** Whether nothing has come since the answer was opened. */
  get isAwaited() {
    return this.isOpen && this.answer.content === this.before;
  }

  /** Show the waiting time, and whether the model is being loaded. */
  async beWaited(seconds) {
    const { value, progress } = await modelStatus(this.answer.model);
    const loaded = progress ? ` ${Math.round(progress * 100)} %` : "";
    this.patience = ` ${value === "loading" ? `${t("loading")}${loaded}, ` : ""}${seconds} s`;
    if (this.isOpen) this.show();
  }

  /** Wait until all that has come is on the page, frame by frame; not long, and not out of sight. */
  async caughtUp(signal) {
    const end = performance.now() + CATCH_UP_MS;
    while (this.isOpen && this.shown.body < this.answer.content.length && performance.now() < end && !document.hidden && !signal.aborted) {
      this.update();
      await new Promise((resolve) => setTimeout(resolve, 16)); // no frame comes to a hidden page
    }
  }

  /** Show the whole answer at once. */
  close() {
    this.leave();
    this.element.removeAttribute("aria-busy");
    this.show();
    for (const live of Object.values(this.live)) live.settle();
  }

  /** Show nothing more: the answer has ended, or this view is not on the page any more. */
  leave() {
    this.isOpen = false;
    this.patience = "";
    clearInterval(this.timer);
  }

  show() {
    const { content, reasoning, error } = this.answer;
    this.reasoning.hidden = !reasoning;
    this.write("thoughts", reasoning);
    this.write("body", content);
    const isEmpty = !content && !error;
    this.waiting.hidden = !(this.isOpen ? this.isAwaited : isEmpty);
    say(this.waiting, this.waitingFor(reasoning));
    this.error.hidden = !error;
    say(this.error, error ?? "");
    this.copy.hidden = this.isOpen || !content;
    say(this.facts, factsOf(this.answer).join(" · "));
  }

  /** Add less in a frame after one that took long, and more after a quick one. */
  adapt(took) {
    this.step = Math.max(FEWEST, Math.min(MOST, Math.round(this.step * (took > QUICK_MS ? 0.8 : 1.15))));
  }

  /** Write a text, or as much more of it as one frame allows. */
  write(place, text) {
    const shown = this.isOpen ? text.slice(0, this.shown[place] + this.step) : text;
    if (shown.length > this.shown[place] || !this.isOpen) this.live[place].write(shown);
    this.shown[place] = shown.length;
    if (shown.length < text.length) this.update();
  }

  waitingFor(reasoning) {
    if (!this.isOpen) return t("No answer.");
    const what = reasoning ? t("Reasoning…") : this.note || t("Waiting for {model}…", { model: this.answer.model });
    return `${what}${this.patience}`;
  }
}
