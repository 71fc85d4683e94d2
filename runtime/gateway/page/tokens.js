/** The view Tokens: a text's tokens, and the tokens that the chat template adds. */

import { isAbort, post } from "./api.js";
import { announce, el, growing, part } from "./dom.js";
import { keep, kept } from "./kept.js";
import { Picker } from "./picker.js";
import { byteCount, holding, tokenize } from "./pieces.js";
import { TokenList } from "./token_list.js";
import { counted, t } from "./words.js";

const PAUSE_MS = 250;

/** The text, tokenized alone and as a message. */
export class Tokens {
  constructor(root, bases) {
    this.root = root;
    this.picker = new Picker(part(root, "picker"), { name: "tokens", bases, hasAdapters: false, onchange: () => this.soon(0) });
    this.area = root.querySelector("textarea");
    this.fit = growing(this.area);
    this.text = new TokenList(part(root, "text-tokens"), t("The text alone"));
    this.chat = new TokenList(part(root, "chat-tokens"), t("As a message, with the chat template"));
    this.running = null;
    this.area.value = kept("text", "");
    this.area.addEventListener("input", () => this.soon(PAUSE_MS));
    part(root, "ids").addEventListener("change", ({ target }) => root.classList.toggle("with-ids", target.checked));
  }

  /** The view is shown: its text may be kept from before. */
  shown() {
    this.fit();
    if (this.area.value && !this.text.tokens) this.soon(0);
  }

  /** Tokenize the text once it has not changed for a while; an earlier request is dropped. */
  soon(pause) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.cut(), pause);
  }

  async cut() {
    this.running?.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    const asked = { model: this.picker.id, content: this.area.value };
    keep("text", asked.content);
    if (!asked.content) return this.clear();
    this.root.setAttribute("aria-busy", "true");
    await Promise.all([
      shownIn(this.text, this.cutText(asked, signal)),
      shownIn(this.chat, this.cutChat(asked, signal)),
    ]);
    if (signal.aborted) return;
    this.root.removeAttribute("aria-busy");
    announce(t("{text}; as a message {chat}", { text: this.text.told(), chat: this.chat.told() }));
  }

  clear() {
    this.text.clear();
    this.chat.clear();
    this.root.removeAttribute("aria-busy");
  }

  async cutText(asked, signal) {
    const tokens = await tokenize(asked, false, signal);
    const { content } = asked;
    const facts = [counted([...content].length, "1 character", "{count} characters"), counted(byteCount(content), "1 byte", "{count} bytes")];
    return { tokens, facts };
  }

  async cutChat({ model, content }, signal) {
    const messages = [{ role: "user", content }];
    const { prompt } = await post("apply-template", { model, messages }, signal);
    const tokens = await tokenize({ model, content: prompt }, true, signal);
    const own = holding(content, tokens);
    const added = own?.filter((isOwn) => !isOwn).length;
    const facts = own
      ? [t("the template adds {added}, shown with a dashed border", { added })]
      : [t("the template changes the text, so its tokens cannot be separated")];
    return { tokens, facts, own };
  }
}

async function shownIn(list, found) {
  try {
    list.show(await found);
  } catch (error) {
    if (!isAbort(error)) list.fail(error.message);
  }
}
