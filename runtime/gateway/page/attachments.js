/** Files of the next message: texts, and pictures where the model takes them. */

import { announce, el, part } from "./dom.js";
import { focusField } from "./focus.js";
import { limits, takesImages } from "./models.js";
import { sized, t } from "./words.js";

const AS_THEY_ARE = new Set(["image/png", "image/jpeg"]); // other pictures become PNG
const BASE64 = 4 / 3; // characters for each byte of a picture
const SHARE = 0.95; // of a request's limit, for all files; JSON escapes make texts longer

/** The files that are attached, as chips above the message. */
export class Attachments {
  /**
   * @param {Element} root where files are dropped
   * @param {HTMLTextAreaElement} area where files are pasted
   * @param {{model: function(): string, changed: function(): void}} options
   */
  constructor(root, area, { model, changed }) {
    Object.assign(this, { root, area, model, changed });
    this.files = [];
    this.waiting = []; // those that are still to be read, in order
    this.reading = Promise.resolve();
    this.chips = part(root, "chips");
    this.problems = part(root, "file-problems");
    this.input = part(root, "files");
    this.button = part(root, "attach");
    this.kinds = part(root, "kinds");
    this.listen();
    this.show();
  }

  /** The most that all files of a conversation may have, in bytes as they are sent. */
  get most() {
    return Math.floor(limits.body * SHARE);
  }

  listen() {
    this.button.addEventListener("click", () => this.input.click());
    this.input.addEventListener("change", async () => {
      await this.take([...this.input.files]);
      this.input.value = "";
    });
    this.area.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (!files.length) return;
      event.preventDefault();
      this.take(files);
    });
    const carries = (event) => event.dataTransfer.types.includes("Files");
    this.root.addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      this.root.classList.add("dropping");
    });
    this.root.addEventListener("dragleave", ({ relatedTarget }) => {
      if (!this.root.contains(relatedTarget)) this.root.classList.remove("dropping");
    });
    this.root.addEventListener("drop", (event) => {
      this.root.classList.remove("dropping");
      if (!carries(event)) return;
      event.preventDefault();
      this.take([...event.dataTransfer.files]);
    });
  }

  /** Attach files; those that cannot be used are named, with the reason. */
  take(files) {
    if (!this.waiting.length) this.say("");
    this.waiting.push(...files);
    this.show();
    focusField(this.area, this.button);
    this.reading = this.reading.then(() => this.readAll(files));
    return this.reading;
  }

  async readAll(files) {
    const problems = [];
    for (const file of files) {
      try {
        const found = await this.read(file);
        this.files.push(found); // the chips may have changed while it was read
      } catch (error) {
        problems.push(error.message);
      }
      this.waiting.shift();
      this.show();
    }
    if (problems.length) this.say([this.problems.textContent, ...problems].filter(Boolean).join(" "));
    announce(problems.join(" ") || t("Attached: {names}", { names: files.map(({ name }) => name).join(", ") }));
    this.changed();
  }

  get isReading() {
    return this.waiting.length > 0;
  }

  /** Wait until every file is read; returns whether all of them are attached. */
  async settled() {
    announce(t("The message is sent when its files are read"));
    while (this.isReading) await this.reading;
    return this.problems.hidden;
  }

  /** A file as the conversation keeps it. Throws an Error that says why it is refused. */
  async read(file) {
    const isPicture = file.type.startsWith("image/") && file.type !== "image/svg+xml";
    const { name } = file;
    if (isPicture && !takesImages(this.model())) throw new Error(t("{name} is a picture, and {model} takes only text.", { name, model: this.model() }));
    this.refuseLarge(name, file.size * (isPicture ? BASE64 : 1));
    const found = isPicture ? await pictureOf(file) : await textOf(file);
    this.refuseLarge(name, found.data.length);
    return { name, ...found };
  }

  refuseLarge(name, size) {
    const used = this.files.reduce((sum, { data }) => sum + data.length, 0);
    if (used + size <= this.most) return;
    throw new Error(t("{name} is too large: this server takes {most} for a whole conversation.", { name, most: sized(this.most) }));
  }

  /** Why a conversation cannot be sent to the chosen model with its files; empty when it can. */
  problem(path) {
    const files = [...path.flatMap((message) => message.files ?? []), ...this.files];
    const picture = files.find(({ kind }) => kind === "image");
    if (picture && !takesImages(this.model())) return t("{name} is a picture, and {model} takes only text.", { name: picture.name, model: this.model() });
    const size = files.reduce((sum, { data }) => sum + data.length, 0);
    if (size <= this.most) return "";
    return t("The files of this conversation have {size}, and this server takes {most}.", { size: sized(size), most: sized(this.most) });
  }

  say(problem) {
    this.problems.hidden = !problem;
    this.problems.textContent = problem;
  }

  /** Take back what was said, unless something else has been said since. */
  unsay(problem) {
    if (this.problems.textContent === problem) this.say("");
  }

  /** Take the files for a message; then no file is attached any more. */
  takeAll() {
    const { files } = this;
    this.files = [];
    this.say("");
    this.show();
    return files;
  }

  show() {
    const drop = (file) => {
      this.files = this.files.filter((other) => other !== file);
      this.show();
      focusField(this.area, this.button);
      this.changed();
    };
    const attached = this.files.map((file) => el("li", {},
      file.kind === "image" ? el("img", { src: file.data, alt: "" }) : null,
      el("span", {}, `${file.name} · ${sized(file.size)}`),
      el("button", { type: "button", class: "quiet small", "aria-label": t("Remove {name}", { name: file.name }), onclick: () => drop(file) }, "×")));
    this.chips.replaceChildren(...attached, ...this.waiting.map(({ name }) => el("li", { class: "reading" }, t("Reading {name}…", { name }))));
    this.chips.hidden = !this.files.length && !this.isReading;
    const kinds = takesImages(this.model()) ? t("The paperclip, dropping or pasting attach pictures and text files, {most} in a conversation.", { most: sized(this.most) })
      : t("The paperclip, dropping or pasting attach text files, {most} in a conversation.", { most: sized(this.most) });
    this.button.title = this.kinds.textContent = kinds;
  }
}

async function textOf(file) {
  const bytes = await file.arrayBuffer();
  try {
    const data = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (!data.includes("\0")) return { kind: "text", data, size: file.size };
  } catch {
    // not UTF-8
  }
  throw new Error(t("{name} is neither a text in UTF-8 nor a picture.", { name: file.name }));
}

/** A picture as a data: URL of PNG or JPEG, which every model's engine reads. */
async function pictureOf(file) {
  const { name } = file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(t("{name} cannot be read as a picture.", { name }));
  }
  const { width, height } = bitmap;
  if (width * height > limits.pixels) {
    throw new Error(t("{name} has too many pixels: {width} × {height}, and this server takes {most}.", { name, width, height, most: limits.pixels }));
  }
  const blob = AS_THEY_ARE.has(file.type) ? file : await asPng(bitmap);
  bitmap.close();
  return { kind: "image", data: await urlOf(blob), size: blob.size };
}

function asPng(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function urlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
