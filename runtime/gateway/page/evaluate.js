/** The view Evaluate: the reports of `decant eval`, and one of them in a frame. */

import { addressOf, listEvaluations } from "./api.js";
import { announce, el, part } from "./dom.js";
import { LANGUAGE, counted, t } from "./words.js";

/** The list, or the report that was chosen from it. */
export class Evaluate {
  constructor(root) {
    this.root = root;
    this.tab = document.getElementById(root.getAttribute("aria-labelledby"));
    this.list = part(root, "list");
    this.state = part(root, "state");
    this.notes = part(root, "notes");
    this.report = part(root, "report");
    this.title = part(root, "title");
    this.frame = part(root, "frame");
    this.alone = part(root, "alone");
    this.opened = "";
    this.loading = null; // what stands for the request that was sent last
    part(root, "back").addEventListener("click", () => this.close());
  }

  /** The view is shown: another evaluation may have ended meanwhile. */
  shown() {
    if (!this.opened) this.load();
  }

  /** Load the list; returns its entries, or null when the request failed. What the last request gave is shown. */
  async load() {
    const now = {};
    this.loading = now;
    this.root.setAttribute("aria-busy", "true");
    const { data, notes, problem } = await listEvaluations().catch(({ message }) => ({ problem: message }));
    if (this.loading === now) {
      this.root.removeAttribute("aria-busy");
      if (data) this.show(data, notes);
      else this.fail(problem);
    }
    return data ?? null;
  }

  show(entries, notes) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.id : ""; // it is replaced
    const hadFocus = this.state.contains(document.activeElement);
    this.state.replaceChildren(...(entries.length ? [] : emptyState()));
    this.list.replaceChildren(...entries.map((entry) => this.row(entry)));
    this.notes.replaceChildren(...notes.map((note) => el("li", {}, note)));
    if (focused || hadFocus) (this.button(focused) ?? this.list.querySelector("button") ?? this.tab).focus();
  }

  fail(problem) {
    const again = el("button", { type: "button", class: "quiet small", onclick: () => this.load() }, t("Try again"));
    const hadFocus = !this.root.hidden && part(this.root, "reports").contains(document.activeElement);
    this.list.replaceChildren();
    this.notes.replaceChildren();
    this.state.replaceChildren(el("p", { class: "notice", role: "alert" }, problem, " ", again));
    if (hadFocus) again.focus();
  }

  row(entry) {
    const button = el("button", { type: "button", onclick: () => this.open(entry.id) }, entry.data || t("(no name)"));
    button.dataset.id = entry.id;
    const facts = [entry.models.join(", "), counted(entry.items, "1 item", "{count} items"), timeOf(entry.began)];
    const broken = entry.is_complete ? null : el("span", { class: "badge" }, t("interrupted"));
    return el("li", {},
      el("h2", {}, button, broken),
      el("p", {}, entry.headline),
      el("p", { class: "facts" }, facts.filter(Boolean).join(" · ")));
  }

  button(id) {
    return [...this.list.querySelectorAll("button")].find(({ dataset }) => dataset.id === id);
  }

  /** Show a report; its address is requested again, because its ticket ends after a while. */
  async open(id) {
    const entries = await this.load();
    if (!entries) return;
    const entry = entries.find((one) => one.id === id);
    if (!entry) {
      this.fail(t("This report has been removed."));
      return;
    }
    const source = addressOf(entry.report).href;
    this.title.textContent = entry.data;
    this.alone.href = source;
    // a new frame, because another address in an old one would be a step in the tab's history
    this.frame.replaceChildren(el("iframe", {
      title: t("Report on {data}", { data: entry.data }), sandbox: "allow-scripts", referrerPolicy: "no-referrer", src: source,
    }));
    this.turn(id);
    part(this.root, "back").focus();
    announce(t("Report on {data}", { data: entry.data }));
  }

  async close() {
    const id = this.opened;
    this.frame.replaceChildren();
    this.turn("");
    (this.button(id) ?? this.tab).focus();
    await this.load();
  }

  /** Turn to the report with this id, or to the list where it is empty. */
  turn(id) {
    this.opened = id;
    this.report.hidden = !id;
    part(this.root, "reports").hidden = Boolean(id);
    this.root.classList.toggle("reading", Boolean(id));
  }
}

function emptyState() {
  return [
    el("p", { class: "empty" },
      t("No evaluation yet. This command measures models on your data, and its report appears here:"), " ",
      el("code", {}, "decant eval MODEL --data FILE")),
  ];
}

/** A time for people; a text that is no time stays as it is. */
function timeOf(text) {
  const time = new Date(text.replace(/([+-]\d\d)(\d\d)$/, "$1:$2")); // strftime's %z has no colon
  if (Number.isNaN(time.getTime())) return text;
  return time.toLocaleString(LANGUAGE, { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
}
