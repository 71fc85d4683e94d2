/** The sampling settings, folded until the reader opens them. */

import { el, freshId } from "./dom.js";
import { keep, kept } from "./kept.js";

const UNSET = "model's own";

/** The settings of one view, kept under its name. */
export class Settings {
  constructor(root, { name, temperature = "" }) {
    this.name = name;
    this.system = el("textarea", { rows: 2, spellcheck: true });
    this.temperature = numberField({ min: 0, max: 5, step: "any" });
    this.limit = numberField({ min: 1, step: 1 });
    this.summary = el("summary");
    const fields = [["System message", this.system], ["Temperature", this.temperature], ["Token limit", this.limit]];
    root.replaceChildren(this.summary, el("div", { class: "fields" }, fields.map(([text, field]) => labelled(text, field))));
    const before = kept(`settings.${name}`, { temperature });
    for (const [key, field] of Object.entries(this.fields)) field.value = before[key] ?? "";
    root.addEventListener("input", () => this.changed());
    this.changed();
  }

  get fields() {
    return { system: this.system, temperature: this.temperature, limit: this.limit };
  }

  changed() {
    const values = Object.fromEntries(Object.entries(this.fields).map(([key, field]) => [key, field.value]));
    keep(`settings.${this.name}`, values);
    this.summary.textContent = `Settings${this.told()}`;
  }

  /** The settings that differ from the model's defaults, in brief. */
  told() {
    const { temperature, max_tokens } = this.sampling();
    const told = [
      this.system.value.trim() ? "system message" : "",
      temperature === undefined ? "" : `temperature ${temperature}`,
      max_tokens === undefined ? "" : `at most ${max_tokens} tokens`,
    ].filter(Boolean);
    return told.length ? `: ${told.join(", ")}` : "";
  }

  /** The request's fields; empty and unusable values are left out. */
  sampling() {
    const sampling = {};
    if (isGiven(this.temperature)) sampling.temperature = this.temperature.valueAsNumber;
    if (isGiven(this.limit)) sampling.max_tokens = this.limit.valueAsNumber;
    return sampling;
  }

  /** The messages, with the system message before them. */
  withSystem(messages) {
    const content = this.system.value.trim();
    return content ? [{ role: "system", content }, ...messages] : messages;
  }
}

function numberField(limits) {
  return el("input", { type: "number", inputMode: "decimal", placeholder: UNSET, ...limits });
}

function isGiven(field) {
  return field.value !== "" && field.validity.valid;
}

function labelled(text, field) {
  field.id = freshId("setting");
  return el("div", {}, el("label", { htmlFor: field.id }, text), field);
}
