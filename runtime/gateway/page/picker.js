/** Chooses the model that answers: a base, an adapter or none, and its scale. */

import { el, freshId } from "./dom.js";
import { keep, kept } from "./kept.js";
import { scaledId } from "./models.js";
import { t } from "./words.js";

const STRONGEST = 2;
const STEP = 0.05;

/** The fields for one choice. `onchange` is called when the reader changes it. */
export class Picker {
  /**
   * @param {Element} root
   * @param {{name: string, bases: Object[], preferred?: number, hasAdapters?: boolean,
   *   onchange?: function(): void}} options the choice is kept under `name`; `preferred` is the
   *   index of the first choice among all bases, each followed by its adapters
   */
  constructor(root, { name, bases, preferred = 0, hasAdapters = true, onchange = () => {} }) {
    Object.assign(this, { name, bases, hasAdapters, onchange });
    this.base = select(bases.map(({ id }) => [id, id]));
    this.adapter = select([]);
    const scales = { min: 0, max: STRONGEST, step: STEP, value: "1" };
    this.slider = el("input", { type: "range", ...scales });
    this.number = el("input", { type: "number", inputMode: "decimal", ...scales, "aria-label": t("Scale as a number") });
    this.adapterField = labelled(t("Adapter"), this.adapter);
    this.scaleField = labelled(t("Scale"), this.slider);
    this.scaleField.append(this.number);
    root.replaceChildren(labelled(t("Model"), this.base), this.adapterField, this.scaleField);
    this.restore(preferred);
    this.listen();
  }

  get chosenBase() {
    return this.bases.find(({ id }) => id === this.base.value);
  }

  get chosenAdapter() {
    return this.chosenBase?.adapters.find(({ id }) => id === this.adapter.value);
  }

  /** The model's id, as requests name it. */
  get id() {
    return this.chosenAdapter ? scaledId(this.chosenAdapter, this.scale) : this.base.value;
  }

  /** The process that answers: several models may share one, where different scales take turns. */
  get engine() {
    const { engine } = this.chosenAdapter ?? this.chosenBase;
    const isShared = engine === this.chosenBase.engine;
    return isShared || this.chosenAdapter.id === this.id ? engine : this.id;
  }

  get scale() {
    const scale = Math.min(Math.max(this.number.valueAsNumber, 0), STRONGEST);
    return Number.isNaN(scale) ? this.chosenAdapter?.scale ?? 1 : scale;
  }

  set scale(scale) {
    this.slider.value = this.number.value = scale;
  }

  restore(preferred) {
    const { base, adapter, scale } = kept(`picker.${this.name}`, choiceAt(this.bases, preferred));
    if (this.bases.some(({ id }) => id === base)) this.base.value = base;
    this.fillAdapters(adapter);
    if (scale >= 0 && scale <= STRONGEST) this.scale = scale;
  }

  /** Offer the chosen base's adapters, with `wanted` chosen where it is among them. */
  fillAdapters(wanted = "") {
    const adapters = this.hasAdapters ? this.chosenBase?.adapters ?? [] : [];
    const options = [["", t("none")], ...adapters.map(({ id, name }) => [id, name])];
    this.adapter.replaceChildren(...optionsOf(options));
    this.adapter.value = adapters.some(({ id }) => id === wanted) ? wanted : "";
    this.show();
  }

  /** Offer the server's present models; the choice stays where it is still among them. */
  refresh() {
    const [base, adapter, scale] = [this.base.value, this.adapter.value, this.scale];
    this.base.replaceChildren(...optionsOf(this.bases.map(({ id }) => [id, id])));
    if (this.bases.some(({ id }) => id === base)) this.base.value = base;
    this.fillAdapters(adapter);
    if (adapter && this.adapter.value === adapter) this.scale = scale;
    if (this.base.value !== base || this.adapter.value !== adapter) this.changed();
  }

  /** Hide fields without a choice, and begin at the adapter's scale. */
  show() {
    this.scale = this.chosenAdapter?.scale ?? 1;
    this.adapterField.hidden = this.adapter.options.length < 2;
    this.scaleField.hidden = this.adapter.value === "";
  }

  listen() {
    this.base.addEventListener("change", () => { this.fillAdapters(); this.changed(); });
    this.adapter.addEventListener("change", () => { this.show(); this.changed(); });
    window.addEventListener("models", () => this.refresh());
    this.slider.addEventListener("input", () => { this.number.value = this.slider.value; this.changed(); });
    this.number.addEventListener("change", () => {
      this.scale = this.scale; // within bounds, and on the slider too
      this.changed();
    });
  }

  changed() {
    keep(`picker.${this.name}`, { base: this.base.value, adapter: this.adapter.value, scale: this.scale });
    this.onchange();
  }
}

/** The choice with a given number, among all bases and their adapters. */
function choiceAt(bases, place) {
  const choices = bases.flatMap(({ id, adapters }) =>
    [{ base: id }, ...adapters.map((adapter) => ({ base: id, adapter: adapter.id }))]);
  return choices[place % choices.length];
}

function select(options) {
  const made = el("select");
  made.replaceChildren(...optionsOf(options));
  return made;
}

function optionsOf(options) {
  return options.map(([value, text]) => el("option", { value }, text));
}

function labelled(text, field) {
  field.id = freshId("field");
  return el("div", { class: "choice" }, el("label", { htmlFor: field.id }, text), field);
}
