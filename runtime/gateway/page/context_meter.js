/** How much of a model's context the conversation takes, from its usage and the typed message. */

import { modelStatus } from "./api.js";
import { el } from "./dom.js";
import { tokenize } from "./pieces.js";
import { quoted } from "./thread.js";
import { numeral, t } from "./words.js";

const PAUSE_MS = 400;
const NEARLY_FULL = 0.9;
const SCALE = /@[\d.]+$/; // of an adapter, at the end of a model's id; it changes no tokens

/** The bar below the message, and its words. */
export class ContextMeter {
  constructor(root) {
    this.root = root;
    this.bar = el("meter", { min: 0, low: 0, high: NEARLY_FULL, max: 1, "aria-hidden": "true" });
    this.words = el("span");
    root.replaceChildren(this.bar, this.words);
    this.running = null;
    this.counts = new WeakMap(); // of each text file: the counts of its tokens, by model
  }

  /**
   * Show what is used, once nothing has changed for a while.
   * @param {{model: string, used: number, draft: string, files: Object[]}} now `used` are the tokens
   *   up to the last answer; `draft` and the text files are what will be sent
   */
  soon(now) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(now), PAUSE_MS);
  }

  async refresh({ model, used, draft, files }) {
    this.running?.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    if (used === 0 && !draft && !files.length) {
      this.root.hidden = true;
      return;
    }
    const { context = 0 } = await modelStatus(model);
    // counting tokens would load a model that is not loaded: only a loaded one is asked
    const parts = context ? [...files.map((file) => this.countOfFile(model, file)), draft ? countOf(model, draft, signal) : 0] : [];
    const typed = (await Promise.all(parts)).reduce((sum, count) => sum + (count ?? 0), 0);
    if (signal.aborted) return;
    this.root.hidden = !context || used + typed === 0;
    if (!this.root.hidden) this.show(used, typed, context);
  }

  /** A file's tokens: counted once, as typing goes on, because a file may be large. */
  countOfFile(model, file) {
    if (!this.counts.has(file)) this.counts.set(file, new Map());
    const counts = this.counts.get(file);
    const name = model.replace(SCALE, "");
    if (!counts.has(name)) {
      const count = countOf(model, `${quoted(file)}\n\n`);
      counts.set(name, count);
      count.then((found) => { if (found === null) counts.delete(name); });
    }
    return counts.get(name);
  }

  show(used, typed, context) {
    const all = used + typed;
    this.bar.value = Math.min(all / context, 1);
    const share = numeral(all / context, { style: "percent", maximumFractionDigits: 0 });
    const words = [t("{used} of {context} tokens ({share})", { used: numeral(all), context: numeral(context), share })];
    if (typed) words.push(t("{typed} of them typed", { typed: numeral(typed) }));
    if (all > context) words.push(t("too long for the context"));
    else if (all > context * NEARLY_FULL) words.push(t("the context is nearly full"));
    this.words.textContent = words.join(", ");
    this.root.classList.toggle("full", all > context * NEARLY_FULL);
  }
}

/** The tokens of a text, or null where the server does not count them. */
async function countOf(model, content, signal) {
  try {
    return (await tokenize({ model, content }, false, signal)).length;
  } catch {
    return null; // the text can still be sent; then the server says what is wrong
  }
}
