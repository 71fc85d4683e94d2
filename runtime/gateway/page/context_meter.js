/** How much of a model's context the conversation takes, from its usage and the typed message. */

import { modelStatus } from "./api.js";
import { el } from "./dom.js";
import { tokenize } from "./pieces.js";
import { numeral, t } from "./words.js";

const PAUSE_MS = 400;
const NEARLY_FULL = 0.9;

/** The bar below the message, and its words. */
export class ContextMeter {
  constructor(root) {
    this.root = root;
    this.bar = el("meter", { min: 0, low: 0, high: NEARLY_FULL, max: 1, "aria-hidden": "true" });
    this.words = el("span");
    root.replaceChildren(this.bar, this.words);
    this.running = null;
  }

  /**
   * Show what is used, once nothing has changed for a while.
   * @param {{model: string, used: number, draft: string}} now `used` are the tokens up to the last
   *   answer, and `draft` is what will be sent
   */
  soon(now) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(now), PAUSE_MS);
  }

  async refresh({ model, used, draft }) {
    this.running?.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    if (used === 0 && !draft) {
      this.root.hidden = true;
      return;
    }
    const { context = 0 } = await modelStatus(model);
    // counting tokens would load a model that is not loaded: only a loaded one is asked
    const typed = context && draft ? await countOf(model, draft, signal) : 0;
    if (signal.aborted) return;
    this.root.hidden = !context || used + typed === 0;
    if (!this.root.hidden) this.show(used, typed, context);
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

async function countOf(model, content, signal) {
  try {
    return (await tokenize({ model, content }, false, signal)).length;
  } catch {
    return 0; // the text can still be sent; then the server says what is wrong
  }
}
