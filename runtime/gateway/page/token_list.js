/** A row of coloured tokens: one Tab stop, arrow keys inside, details of the current token. */

import { el, freshId } from "./dom.js";
import { bytesOf, hex, shownPiece } from "./pieces.js";
import { counted, numeral, t } from "./words.js";

const HUES = 5;
const MOST = 4000; // elements; a browser becomes slow long before a tokenizer does

/** The tokens of one text. */
export class TokenList {
  constructor(root, title) {
    this.title = el("h2", { id: freshId("tokens") }, title);
    this.facts = el("p", { class: "facts" });
    this.list = el("div", { class: "row-of-tokens", role: "listbox", "aria-labelledby": this.title.id, "aria-orientation": "horizontal" });
    this.current = el("p", { class: "current" });
    this.error = el("p", { class: "error", hidden: true });
    this.element = el("section", { class: "token-list", "aria-labelledby": this.title.id, hidden: true },
      this.title, this.facts, this.error, this.list, this.current);
    this.tokens = null;
    root.replaceChildren(this.element);
    this.listen();
  }

  listen() {
    this.list.addEventListener("keydown", (event) => this.move(event));
    for (const name of ["focusin", "pointerover", "click"]) {
      this.list.addEventListener(name, ({ target }) => this.describe(target.closest("[role=option]")));
    }
    this.list.addEventListener("click", ({ target }) => target.closest("[role=option]")?.focus());
  }

  /**
   * @param {{tokens: Object[], facts: string[], own?: boolean[]|null}} found `own` says which
   *   tokens belong to the text; the others belong to the template
   */
  show({ tokens, facts, own = null }) {
    this.tokens = tokens;
    const shown = tokens.slice(0, MOST);
    let hue = 0; // the text's tokens have the same colours with and without the template's
    const drawn = shown.map((token, index) => {
      const isOwn = own?.[index] ?? true;
      if (isOwn) hue += 1;
      return tokenNode(token, index, isOwn ? `hue-${hue % HUES}` : "added");
    });
    this.list.replaceChildren();
    drawn.forEach((node, index) => this.list.append(node, endsLine(shown[index]) ? "\n" : ""));
    this.enter(drawn[0]);
    const left = tokens.length > MOST ? [t("the first {count} are shown", { count: numeral(MOST) })] : [];
    this.facts.replaceChildren(el("strong", {}, this.told()), [...["", ...facts], ...left].join(" · "));
    this.reveal(null);
    this.describe(drawn[0]);
  }

  fail(message) {
    this.list.replaceChildren();
    this.facts.replaceChildren();
    this.tokens = null;
    this.reveal(message);
  }

  reveal(error) {
    this.element.hidden = false;
    this.error.hidden = error === null;
    this.error.textContent = error ?? "";
    this.list.hidden = this.current.hidden = error !== null;
  }

  clear() {
    this.tokens = null;
    this.element.hidden = true;
    this.list.replaceChildren();
  }

  /** The number of tokens, in words. */
  told() {
    return counted(this.tokens?.length ?? 0, "1 token", "{count} tokens");
  }

  move(event) {
    const nodes = this.list.children;
    const at = [...nodes].indexOf(document.activeElement);
    const moves = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: nodes.length - 1 };
    const next = nodes[moves[event.key]];
    if (!(event.key in moves)) return;
    event.preventDefault();
    next?.focus();
  }

  /** Make a token the one that Tab reaches. */
  enter(node) {
    const before = this.list.querySelector("[tabindex='0']");
    if (before) before.tabIndex = -1;
    if (node) node.tabIndex = 0;
  }

  describe(node) {
    if (!node) return;
    if (node === document.activeElement) this.enter(node);
    this.list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    node.setAttribute("aria-selected", "true");
    const index = Number(node.dataset.index);
    const token = this.tokens[index];
    this.current.replaceChildren(
      t("Token {at} of {count}: id", { at: index + 1, count: this.tokens.length }), " ", el("strong", {}, String(token.id)), ", ",
      el("code", {}, shownPiece(token) || t("nothing")), `, ${bytesTold(token)}`,
    );
  }
}

function endsLine({ piece }) {
  return typeof piece === "string" && piece.endsWith("\n");
}

function bytesTold(token) {
  const bytes = bytesOf(token);
  return bytes.length ? t("bytes {hex}", { hex: hex(bytes) }) : t("no bytes");
}

function tokenNode(token, index, look) {
  const shown = shownPiece(token);
  const label = `${shown || t("empty")}, id ${token.id}${look === "added" ? t(", from the template") : ""}`;
  const node = el("span", { class: `token ${look}`, role: "option", tabIndex: -1, title: `id ${token.id}`, "aria-label": label, "aria-selected": "false" }, shown);
  node.dataset.index = index;
  node.dataset.id = token.id;
  return node;
}
