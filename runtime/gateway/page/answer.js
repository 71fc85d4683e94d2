/** One answer: requested, received piece by piece, and shown. */

import { isAbort, modelStatus, streamed } from "./api.js";
import { copyButton, el, oncePerFrame } from "./dom.js";
import { LiveMarkdown } from "./markdown.js";
import { hasTemplate } from "./models.js";

const PATIENCE_MS = 2000;
const RAW_TOKENS = 256; // the limit of an answer without a chat template, as in `decant chat`

/**
 * An answer before its first piece.
 * @param {string} model
 */
export function newAnswer(model) {
  return { role: "assistant", model, content: "", reasoning: "", finish: null, tokens: null, speed: null, error: null, isRaw: false, isStopped: false };
}

/**
 * Fill `answer` from the server, calling `changed` after each piece. It does not throw: an error
 * becomes part of the answer. A model without a chat template continues the text.
 */
export async function receive(answer, { messages, sampling }, signal, changed) {
  const body = { model: answer.model, ...sampling, stream: true, stream_options: { include_usage: true } };
  const clock = { began: null };
  answer.isRaw = !hasTemplate(answer.model);
  const asked = answer.isRaw
    ? streamed("v1/completions", { max_tokens: RAW_TOKENS, ...body, prompt: textOf(messages) }, signal)
    : streamed("v1/chat/completions", { ...body, messages }, signal);
  try {
    for await (const event of asked) {
      take(answer, event, clock);
      changed();
    }
  } catch (error) {
    if (isAbort(error)) answer.isStopped = true;
    else answer.error = error.message;
  }
}

/** All messages, one line each. */
function textOf(messages) {
  return messages.map(({ content }) => content).join("\n");
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
  answer.tokens = event.usage?.completion_tokens ?? answer.tokens;
  answer.speed = event.timings?.predicted_per_second ?? answer.speed;
  if (event.usage && answer.speed === null && clock.began !== null) {
    answer.speed = (answer.tokens * 1000) / Math.max(performance.now() - clock.began, 1);
  }
}

/** The line under an answer: its length and speed, and why it ended early. */
export function factsOf({ tokens, speed, finish, isRaw, isStopped }) {
  const facts = [];
  if (isRaw) facts.push("the model has no chat template: it continues the text");
  if (tokens !== null) facts.push(tokens === 1 ? "1 token" : `${tokens.toLocaleString("en")} tokens`);
  if (tokens > 1 && Number.isFinite(speed)) facts.push(`${speed.toFixed(speed < 100 ? 1 : 0)} tokens/s`);
  if (finish === "length") facts.push("cut off at the token limit");
  if (isStopped) facts.push("stopped by you");
  return facts;
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
    this.reasoning = el("details", { class: "reasoning", hidden: true }, el("summary", {}, "Reasoning"), this.thoughts);
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
    this.update = oncePerFrame(() => { if (this.isOpen) around(() => this.show()); });
    this.show();
  }

  /** Show that the answer is awaited, and after a while for how long. */
  open() {
    const began = performance.now();
    this.isOpen = true;
    this.element.setAttribute("aria-busy", "true");
    this.timer = setInterval(() => {
      const waited = performance.now() - began;
      if (waited > PATIENCE_MS && !this.answer.content) this.beWaited(Math.floor(waited / 1000));
    }, 1000);
    this.show();
  }

  /** Show the waiting time, and whether the model is being loaded. */
  async beWaited(seconds) {
    const { value, progress } = await modelStatus(this.answer.model);
    const loaded = progress ? ` ${Math.round(progress * 100)} %` : "";
    this.patience = ` ${value === "loading" ? `loading${loaded}, ` : ""}${seconds} s`;
    if (this.isOpen) this.show();
  }

  /** Show the whole answer at once. */
  close() {
    this.isOpen = false;
    clearInterval(this.timer);
    this.element.removeAttribute("aria-busy");
    this.show();
  }

  show() {
    const { content, reasoning, error } = this.answer;
    this.reasoning.hidden = !reasoning;
    if (reasoning) this.live.thoughts.write(reasoning);
    this.live.body.write(content);
    const isEmpty = !content && !error;
    this.waiting.hidden = !(this.isOpen ? !content : isEmpty);
    this.waiting.textContent = this.waitingFor(reasoning);
    this.error.hidden = !error;
    this.error.textContent = error ?? "";
    this.copy.hidden = this.isOpen || !content;
    this.facts.textContent = factsOf(this.answer).join(" · ");
  }

  waitingFor(reasoning) {
    if (!this.isOpen) return "No answer.";
    return `${reasoning ? "Reasoning…" : `Waiting for ${this.answer.model}…`}${this.patience ?? ""}`;
  }
}
