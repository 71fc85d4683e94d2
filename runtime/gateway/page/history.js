/** The list of conversations that this browser keeps: opened, searched, renamed, deleted. */

import { announce, el, isComposed, part } from "./dom.js";
import { focusField } from "./focus.js";
import { hasRoom, listThreads, remove, removeAll, restore, save, search } from "./store.js";
import { threadOf } from "./thread_import.js";
import { LANGUAGE, t } from "./words.js";

const PAUSE_MS = 150;

/** The list beside the chat. */
export class History {
  /**
   * @param {Element} root
   * @param {{open: function(string): void, rename: function(string, string): Promise<void>,
   *   listed: function(Object[]): void, removed: function(string|null): void,
   *   download: function(string): void}} actions
   *   `listed` receives the records, `removed` null when all are deleted, `download` the kind of file
   */
  constructor(root, actions) {
    this.actions = actions;
    this.field = root.querySelector("[type=search]");
    this.list = part(root, "threads");
    this.none = part(root, "none");
    this.undo = part(root, "undo");
    this.all = part(root, "remove-all");
    this.input = part(root, "import-files");
    this.problems = part(root, "import-problems");
    this.records = [];
    this.current = "";
    this.renaming = null; // the row whose title is being typed
    this.field.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), PAUSE_MS);
    });
    this.field.addEventListener("keydown", (event) => this.clearSearch(event));
    this.all.addEventListener("click", () => this.removeAll());
    this.importButton = part(root, "import");
    this.importButton.addEventListener("click", () => this.input.click());
    this.input.addEventListener("change", async () => {
      await this.importAll([...this.input.files]);
      this.input.value = "";
    });
    this.tabs = new BroadcastChannel("decant"); // the other tabs of this server in this browser
    this.tabs.onmessage = ({ data }) => {
      if ("removed" in data) this.actions.removed(data.removed);
      this.load();
    };
  }

  /** Escape empties the search first; only then it leaves the list, or stops an answer. */
  clearSearch(event) {
    if (event.key !== "Escape" || isComposed(event) || !this.field.value) return;
    event.preventDefault();
    event.stopPropagation();
    this.field.value = "";
    this.load();
  }

  /** Tell the other tabs that a conversation has changed. */
  share() {
    this.tabs.postMessage({});
  }

  /** Load the list, with `current` as the open conversation, and show what the search finds. */
  async load(current = this.current) {
    if (current !== this.current) this.renaming = null;
    this.current = current;
    const wanted = this.field.value.trim();
    const found = wanted ? await search(wanted).catch(() => new Set()) : null;
    this.records = await listThreads();
    this.actions.listed(this.records);
    if (wanted !== this.field.value.trim()) return; // a newer search is under way
    const lower = wanted.toLowerCase();
    const isShown = ({ id, title }) => !found || found.has(id) || title.toLowerCase().includes(lower) || id === this.renaming?.dataset.id;
    const shown = this.records.filter(isShown);
    this.show(shown, wanted);
  }

  show(records, wanted) {
    const focused = document.activeElement;
    const row = this.list.contains(focused) ? focused.closest("[data-id]") : null;
    const place = row ? [...row.querySelectorAll("button")].indexOf(focused) : 0;
    this.put(records.map((record) => (record.id === this.renaming?.dataset.id ? this.renaming : this.row(record))));
    this.none.hidden = records.length > 0;
    this.none.textContent = wanted ? t("No conversation contains this text.") : t("Conversations appear here. This browser keeps them.");
    this.all.hidden = this.records.length === 0;
    if (!row || focused.isConnected) return;
    const buttons = this.rowOf(row.dataset.id)?.querySelectorAll("button") ?? [];
    (buttons[place] ?? buttons[0] ?? this.importButton).focus();
  }

  /** Replace the rows around the one that is being renamed, which keeps its text, caret and focus. */
  put(rows) {
    const at = rows.indexOf(this.renaming);
    if (at < 0) {
      this.renaming = null;
      this.list.replaceChildren(...rows);
      return;
    }
    for (const row of [...this.list.children]) if (row !== this.renaming) row.remove();
    this.list.prepend(...rows.slice(0, at));
    this.list.append(...rows.slice(at + 1));
  }

  rowOf(id) {
    return [...this.list.children].find(({ dataset }) => dataset.id === id);
  }

  row({ id, title, updated }) {
    const isOpen = id === this.current;
    const open = el("button", { type: "button", class: "thread", title, onclick: () => this.actions.open(id) },
      el("span", { dir: "auto" }, title || t("(no title)")), el("span", { class: "facts" }, whenOf(updated)));
    if (isOpen) open.setAttribute("aria-current", "true");
    const row = el("li", { "data-id": id }, open, isOpen ? this.tools(id, title) : null);
    return row;
  }

  tools(id, title) {
    const tool = (text, act) => el("button", { type: "button", class: "quiet small", onclick: act }, t(text));
    return el("div", { class: "tools" },
      tool("Rename", () => this.rename(id, title)),
      tool("Markdown", () => this.actions.download("md")),
      tool("JSON", () => this.actions.download("json")),
      tool("Delete", () => this.remove(id, title)));
  }

  rename(id, title) {
    const field = el("input", { value: title, "aria-label": t("Title"), maxLength: 200, dir: "auto" });
    const end = () => {
      this.renaming = null;
      this.load().then(() => (this.rowOf(id)?.querySelector("button") ?? this.importButton).focus());
    };
    const form = el("form", { class: "renaming" }, field, el("div", { class: "row" },
      el("button", { type: "button", class: "quiet small", onclick: end }, t("Cancel")),
      el("button", { type: "submit", class: "quiet small" }, t("Rename"))));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (field.value.trim()) await this.actions.rename(id, field.value.trim());
      end();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || isComposed(event)) return;
      event.stopPropagation();
      end();
    });
    this.renaming = this.rowOf(id);
    this.renaming.replaceChildren(form);
    field.focus();
    field.select();
  }

  /** Delete a conversation, and offer to bring it back until another one is deleted. */
  async remove(id, title) {
    this.actions.removed(id);
    const found = await remove(id);
    this.tabs.postMessage({ removed: id });
    await this.load("");
    const undo = el("button", { type: "button", class: "quiet small" }, t("Undo"));
    undo.addEventListener("click", async () => {
      await restore(found);
      this.share();
      await this.actions.open(id); // it takes the focus from the button
      this.undo.hidden = true;
      announce(t("The conversation is back"));
    });
    this.undo.replaceChildren(el("span", {}, t("Deleted: {title}", { title })), undo);
    this.undo.hidden = found === null;
    (found === null ? this.importButton : undo).focus();
    announce(t("Deleted: {title}", { title }));
  }

  /** Keep the conversations of exported files beside the others, and open the last one. */
  async importAll(files) {
    const problems = [];
    let opened = null;
    for (const file of files) {
      try {
        opened = await imported(file);
      } catch (error) {
        problems.push(error.message);
      }
    }
    this.problems.hidden = !problems.length;
    this.problems.textContent = problems.join(" ");
    if (opened === null) return;
    this.share();
    await this.actions.open(opened);
    announce(t("Imported"));
  }

  async removeAll() {
    if (!confirm(t("Delete all conversations? This cannot be undone."))) return;
    this.actions.removed(null);
    await removeAll().catch(() => {});
    this.tabs.postMessage({ removed: null });
    this.undo.hidden = true;
    await this.load("");
    focusField(this.field, this.importButton);
    announce(t("All conversations are deleted"));
  }
}

/** Keep the conversation of a file; returns its id. */
async function imported(file) {
  const thread = await threadOf(file);
  const { record } = thread;
  if (!(await hasRoom(record))) throw new Error(t("There is no room for {name}: delete conversations first.", { name: file.name }));
  try {
    await save(record, [...thread.messages.values()]);
  } catch {
    throw new Error(t("This browser does not keep the conversation: it has no room for it, or keeps nothing."));
  }
  return thread.id;
}

/** The time of today, the date of other days. */
function whenOf(updated) {
  const date = new Date(updated);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday
    ? date.toLocaleTimeString(LANGUAGE, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })
    : date.toLocaleDateString(LANGUAGE, { dateStyle: "medium" });
}
