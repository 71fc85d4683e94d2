/** The sampling settings, folded until the reader opens them. */

import { el, freshId } from "./dom.js";
import { keep, kept } from "./kept.js";
import { numeral, t } from "./words.js";

/** Each number: its field in a request, its label, its limits, and what it does. */
const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 5 }, "0 takes the likeliest token; higher values take unlikely ones more often"],
  ["top_p", "Top p", { min: 0, max: 1 }, "Only the likeliest tokens whose probabilities add up to this"],
  ["top_k", "Top k", { min: 0, step: 1 }, "Only this many of the likeliest tokens; 0 is all"],
  ["min_p", "Min p", { min: 0, max: 1 }, "Only tokens with at least this part of the likeliest one's probability"],
  ["repeat_penalty", "Repeat penalty", { min: 0, max: 10 }, "Above 1, tokens that came shortly before become less likely; 1 is off"],
  ["presence_penalty", "Presence penalty", { min: -2, max: 2 }, "Above 0, tokens that came shortly before become less likely; 0 is off"],
  ["frequency_penalty", "Frequency penalty", { min: -2, max: 2 }, "Above 0, tokens become less likely each time they come; 0 is off"],
  ["max_tokens", "Token limit", { min: 1, step: 1 }, "The most tokens of an answer"],
  ["seed", "Seed", { min: 0, max: 4294967294, step: 1 }, "The same seed, prompt and settings give the same answer"],
];
const UNSET = "model's own";
const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };

/** The settings of one view, kept under its name. */
export class Settings {
  /**
   * @param {Element} root a <details>
   * @param {{name: string, temperature?: string, onchange?: function(): void}} options
   */
  constructor(root, { name, temperature = "", onchange = () => {} }) {
    Object.assign(this, { root, name, onchange });
    this.system = el("textarea", { rows: 2, spellcheck: true, dir: "auto" });
    this.numbers = Object.fromEntries(NUMBERS.map(([key, , limits, title]) => [key, numberField(limits, title)]));
    this.stop = el("textarea", { rows: 2, spellcheck: false, placeholder: t("one text a line; \\n is a line break") });
    this.schema = el("textarea", { rows: 2, spellcheck: false, placeholder: "{\"type\": \"object\", …}", class: "code-field" });
    this.error = el("p", { class: "error", role: "alert", hidden: true });
    this.summary = el("summary");
    const before = kept(`settings.${name}`, { temperature });
    for (const [key, field] of Object.entries(this.fields)) field.value = before[key] ?? "";
    this.build();
    this.explain();
    root.addEventListener("input", () => this.changed());
    this.changed();
  }

  build() {
    const numbers = NUMBERS.map(([key, label]) => labelled(t(label), this.numbers[key]));
    const clear = el("button", { type: "button", class: "quiet small", onclick: () => this.clear() }, t("Model's own for all"));
    this.root.replaceChildren(this.summary, el("div", { class: "fields" },
      labelled(t("System message"), this.system, "wide"),
      el("div", { class: "numbers" }, numbers),
      labelled(t("Stop at"), this.stop),
      labelled(t("JSON schema of the answer"), this.schema),
      el("div", { class: "row wide" }, this.error, clear)));
  }

  /** Show what a number does below its field, once that has the focus: not everybody can hover. */
  explain() {
    const hint = el("p", { class: "hint", "aria-hidden": "true" }); // the field's title is read out
    for (const [key, , , title] of NUMBERS) {
      this.numbers[key].addEventListener("focus", () => {
        hint.textContent = t(title);
        this.numbers[key].after(hint);
      });
    }
  }

  get fields() {
    return { system: this.system, ...this.numbers, stop: this.stop, schema: this.schema };
  }

  setSystem(text) {
    this.system.value = text;
    this.changed();
  }

  clear() {
    for (const field of Object.values(this.fields)) if (field !== this.system) field.value = "";
    this.changed();
  }

  changed() {
    const values = Object.fromEntries(Object.entries(this.fields).map(([key, field]) => [key, field.value]));
    keep(`settings.${this.name}`, values);
    this.summary.textContent = `${t("Settings")}${this.inBrief()}`;
    this.schema.setCustomValidity(this.schemaProblem());
    this.error.textContent = this.problem();
    this.error.hidden = !this.error.textContent;
    this.onchange();
  }

  /** The settings that differ from the model's defaults, in brief. */
  inBrief() {
    const brief = [
      this.system.value.trim() ? t("system message") : "",
      ...NUMBERS.filter(([key]) => isGiven(this.numbers[key])).map(([key, label]) => brieflyOf(key, label, this.numbers[key].valueAsNumber)),
      this.stop.value ? t("stop texts") : "",
      this.schema.value.trim() ? t("JSON schema") : "",
    ].filter(Boolean);
    return brief.length ? `: ${brief.join(", ")}` : "";
  }

  /** The reason why the settings cannot be used; empty when they can. */
  problem() {
    const wrong = NUMBERS.find(([key]) => !this.numbers[key].validity.valid);
    if (!wrong) return this.schemaProblem();
    const [key, label] = wrong;
    return `${t(label)}: ${this.numbers[key].validationMessage}`;
  }

  schemaProblem() {
    const text = this.schema.value.trim();
    if (!text) return "";
    try {
      const schema = JSON.parse(text);
      return schema !== null && typeof schema === "object" && !Array.isArray(schema) ? "" : t("The JSON schema is not an object.");
    } catch (error) {
      return t("The JSON schema is not JSON: {why}", { why: error.message });
    }
  }

  /** Open the settings at the system message, or at what is wrong. */
  reveal() {
    this.root.open = true;
    const wrong = Object.values(this.fields).find((field) => !field.validity.valid);
    (wrong ?? this.system).focus();
  }

  /** The request's fields; empty ones are left out. */
  sampling() {
    const sampling = {};
    for (const [key, field] of Object.entries(this.numbers)) if (isGiven(field)) sampling[key] = field.valueAsNumber;
    const stops = this.stop.value.split("\n").filter(Boolean).map((line) => line.replace(/\\[nt\\]/g, (found) => ESCAPES[found]));
    if (stops.length) sampling.stop = stops;
    if (this.schema.value.trim() && !this.schemaProblem()) {
      sampling.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(this.schema.value) } };
    }
    return sampling;
  }

  /** The messages, with the system message before them. */
  withSystem(messages) {
    const content = this.system.value.trim();
    return content ? [{ role: "system", content }, ...messages] : messages;
  }
}

function brieflyOf(key, label, value) {
  if (key === "max_tokens") return t("at most {count} tokens", { count: numeral(value) });
  return `${t(label).toLowerCase()} ${value}`;
}

function numberField(limits, title) {
  return el("input", { type: "number", inputMode: "decimal", placeholder: t(UNSET), title: t(title), step: "any", ...limits });
}

function isGiven(field) {
  return field.value !== "" && field.validity.valid;
}

function labelled(text, field, look = "") {
  field.id = freshId("setting");
  return el("div", look ? { class: look } : {}, el("label", { htmlFor: field.id }, text), field);
}
