/** The view Compare: one prompt, several models at once, and where they differ. */

import { AnswerView, newAnswer, receive } from "./answer.js";
import { markDifferences } from "./diff.js";
import { announce, el, freshId, growing, onEscape, part, submitsOnEnter } from "./dom.js";
import { keep, kept } from "./kept.js";
import { Picker } from "./picker.js";
import { SendOrStop } from "./send_or_stop.js";
import { Settings } from "./settings.js";
import { t } from "./words.js";

const FEWEST = 2;
const MOST = 6;

/** The prompt and its columns. */
export class Compare {
  constructor(root, bases) {
    this.bases = bases;
    // differences should come from the models, not from chance
    this.settings = new Settings(part(root, "settings"), { name: "compare", temperature: "0" });
    this.form = part(root, "form");
    this.area = this.form.querySelector("textarea");
    this.grid = part(root, "columns");
    this.addButton = part(root, "add");
    this.buttons = new SendOrStop(this.form, this.area);
    this.turns = part(root, "turns");
    this.columns = [];
    this.running = false;
    growing(this.area);
    this.listen(root);
    for (let count = Math.min(Math.max(kept("columns", FEWEST), FEWEST), MOST); count > 0; count -= 1) this.add();
  }

  listen(root) {
    submitsOnEnter(this.area);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.buttons.stop.addEventListener("click", () => this.stop());
    this.addButton.addEventListener("click", () => this.add().picker.base.focus());
    onEscape(root, () => this.stop());
  }

  add() {
    const column = new Column(this.bases, this.columns.length, { removed: () => this.remove(column), changed: () => this.showTurns() });
    this.columns.push(column);
    this.grid.append(column.element);
    this.refresh();
    return column;
  }

  remove(column) {
    column.stop();
    const at = this.columns.indexOf(column);
    this.columns.splice(at, 1);
    column.element.remove();
    this.refresh();
    this.columns[Math.min(at, this.columns.length - 1)].element.focus();
    announce(t("{count} columns are left", { count: this.columns.length }));
  }

  /** Number the columns, and enable the buttons that can be used now. */
  refresh() {
    this.columns.forEach((column, index) => column.number(index + 1, this.columns.length > FEWEST));
    this.addButton.disabled = this.columns.length >= MOST;
    this.buttons.show(this.running);
    keep("columns", this.columns.length);
    this.showTurns();
  }

  /** The columns that share a process with others but have other scales: they answer in turn. */
  get inTurn() {
    return this.columns.filter(({ picker }) => this.columns.some(({ picker: other }) => other.engine === picker.engine && other.id !== picker.id));
  }

  /** Say before the question which columns will wait for each other. */
  showTurns() {
    const numbers = this.inTurn.map((column) => this.columns.indexOf(column) + 1);
    this.turns.hidden = numbers.length === 0;
    this.turns.textContent = t("Columns {numbers} take turns: one process answers with one adapter and scale at a time.", { numbers: numbers.join(", ") });
  }

  /** Say in the columns that wait which one has its turn. */
  noteTurns() {
    const { inTurn } = this;
    for (const { view, picker } of inTurn) {
      const ahead = inTurn.find((other) => other.picker.engine === picker.engine && other.view?.isOpen && !other.view.isAwaited);
      if (!view?.isAwaited) continue;
      view.note = ahead ? t("Waiting for its turn: {column} answers…", { column: ahead.title.textContent.toLowerCase() }) : "";
      view.update();
    }
  }

  stop() {
    this.columns.forEach((column) => column.stop());
  }

  /** Ask all columns at once; when the last answer has ended, mark the differences. */
  async run() {
    const content = this.area.value.trim();
    if (!content || this.running) return;
    if (this.settings.problem()) return this.settings.reveal();
    this.running = true;
    this.refresh();
    announce(t("Answering"));
    const request = { messages: this.settings.withSystem([{ role: "user", content }]), sampling: this.settings.sampling() };
    await Promise.all(this.columns.map((column) => column.ask(request, () => this.noteTurns())));
    this.running = false;
    this.refresh();
    announce(this.told());
  }

  /** Mark and count the differences; returns the text for a screen reader. */
  told() {
    const [first, ...others] = this.columns.filter((column) => column.view);
    first?.say(others.length ? t("The other columns are compared with this one.") : "");
    return others.map((column) => column.compareWith(first)).join(" ");
  }
}

/** One model and its answer. */
class Column {
  /** `removed` and `changed` are called when the reader removes the column or picks another model. */
  constructor(bases, index, { removed, changed }) {
    this.title = el("h2", { id: freshId("column") });
    this.removeButton = el("button", { type: "button", class: "quiet small", onclick: removed }, t("Remove"));
    this.place = el("div", { class: "place" });
    this.difference = el("p", { class: "facts" });
    this.running = null;
    this.view = null;
    const root = el("div", { class: "picker" });
    this.picker = new Picker(root, { name: `compare.${index}`, bases, preferred: index, onchange: changed });
    const head = el("div", { class: "row" }, this.title, this.removeButton);
    const labels = { class: "column", role: "group", "aria-labelledby": this.title.id, tabIndex: -1 };
    this.element = el("div", labels, head, root, this.place, this.difference);
  }

  number(number, canGo) {
    this.title.textContent = t("Column {number}", { number });
    this.removeButton.hidden = !canGo;
    this.removeButton.setAttribute("aria-label", t("Remove column {number}", { number }));
  }

  say(text) {
    this.difference.textContent = text;
  }

  stop() {
    this.running?.abort();
  }

  /** Show the answer to a request; `noted` is called before each change of it. */
  async ask(request, noted) {
    this.running = new AbortController();
    this.view = new AnswerView(newAnswer(this.picker.id));
    this.say("");
    this.place.replaceChildren(el("p", { class: "model" }, this.view.answer.model), this.view.element);
    this.view.open();
    await receive(this.view.answer, request, this.running.signal, () => {
      noted();
      this.view.update();
    });
    this.view.close();
    noted();
  }

  /** Mark and count the words that are not in the first column's answer. */
  compareWith(first) {
    const name = this.title.textContent;
    if (!this.view.answer.content || !first.view.answer.content) return t("{name}: nothing to compare.", { name });
    const found = markDifferences(first.view.body, this.view.body);
    this.say(toldOf(found, first.title.textContent.toLowerCase()));
    return `${name}: ${this.difference.textContent}`;
  }
}

function toldOf(found, first) {
  if (found === null) return t("Too long to compare word by word.");
  const { words, differ } = found;
  return differ ? t("{differ} of {words} words differ from {first}.", { differ, words, first }) : t("No word differs from {first}.", { first });
}
