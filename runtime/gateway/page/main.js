/** The start of the page: the key, the models, and the views. */

import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { copySources } from "./copied_text.js";
import { announce, el } from "./dom.js";
import { Evaluate } from "./evaluate.js";
import { takeKeyFromAddress } from "./key.js";
import { loadBases, refreshBases } from "./models.js";
import { useShortcuts } from "./shortcuts.js";
import { useTabs } from "./tabs.js";
import { Tokens } from "./tokens.js";
import { t, translatePage } from "./words.js";

const REFRESH_MS = 1000; // between two looks at the server's list of models

translatePage();
takeKeyFromAddress();
document.addEventListener("copy", copySources);
window.addEventListener("hashchange", () => { if (takeKeyFromAddress()) start(); });

const views = {};
let up = null;
useTabs(document.querySelector("[role=tablist]"), (id) => {
  up = id;
  views[id]?.shown?.();
});
start();

/** Load the models and build the views; on failure, show the error and a button to retry. */
async function start() {
  if (Object.keys(views).length) return;
  try {
    const bases = await loadBases();
    if (!bases.length) throw new Error(t("This server has no models yet."));
    say();
    await build(bases);
  } catch (error) {
    say(error.message);
  }
}

async function build(bases) {
  const kinds = { chat: Chat, compare: Compare, tokens: Tokens, evaluate: Evaluate };
  for (const [id, View] of Object.entries(kinds)) {
    const root = document.getElementById(id);
    views[id] = new View(root, bases);
    await views[id].ready;
    root.inert = false;
  }
  useShortcuts(views.chat);
  views[up]?.shown?.();
  announce(t("Ready"));
  keepCurrent(bases);
}

/** Show changes of the server's adapters when the reader comes back, or reaches for the list. */
function keepCurrent(bases) {
  let [listed, after] = [JSON.stringify(bases), 0];
  const refresh = async () => {
    if (document.hidden || performance.now() < after) return;
    after = performance.now() + REFRESH_MS;
    try {
      await refreshBases(bases);
    } catch {
      return; // the reader's next request says what is wrong
    }
    const now = JSON.stringify(bases);
    if (now !== listed) window.dispatchEvent(new Event("models"));
    listed = now;
  };
  document.addEventListener("visibilitychange", refresh);
  for (const kind of ["focusin", "pointerover"]) {
    document.addEventListener(kind, ({ target }) => { if (target.closest?.(".choice")) refresh(); });
  }
}

/** Show a problem that concerns the whole page, or none. */
function say(problem = "") {
  const notice = document.getElementById("notice");
  const focused = document.activeElement;
  const hadFocus = notice.contains(focused) || (problem && (focused === document.body || !focused.checkVisibility()));
  notice.replaceChildren();
  if (problem) notice.append(el("p", { class: "notice" }, problem, " ", el("button", { type: "button", class: "quiet small", onclick: start }, t("Try again"))));
  if (hadFocus) (notice.querySelector("button") ?? document.querySelector("[role=tab][aria-selected=true]")).focus();
}
