/**
 * A conversation as a tree: each message may have several successors, one of which is chosen. The
 * chosen ones from the first on are the path, which the page shows and the model reads.
 */

const TITLE_MAX = 80; // characters of the first message
const ROOT = 0;

/**
 * @typedef {{id: number, parent: number, thread: string, role: string, content: string,
 *   files?: Object[]}} Message
 */

/** One conversation. */
export class Thread {
  /**
   * @param {Object} [record] what the list of conversations keeps of it
   * @param {Message[]} [messages] in the order in which they were written
   */
  constructor(record = {}, messages = []) {
    this.id = record.id ?? freshName();
    this.title = record.title ?? "";
    this.isNamed = record.isNamed ?? false;
    this.updated = record.updated ?? Date.now();
    this.system = record.system ?? null; // the system message; null where none is known
    this.chosen = new Map(record.chosen ?? []);
    this.messages = new Map();
    this.successors = new Map();
    messages.forEach((message) => this.put(message));
  }

  /** What the list keeps: small, and without the messages. */
  get record() {
    const { id, title, isNamed, updated, system } = this;
    let size = system?.length ?? 0;
    for (const message of this.messages.values()) size += sizeOf(message);
    return { id, title, isNamed, updated, system, size, count: this.messages.size, chosen: [...this.chosen] };
  }

  get isEmpty() {
    return this.messages.size === 0;
  }

  /** The chosen messages, the first one first. */
  get path() {
    const path = [];
    for (let message = this.next(ROOT); message; message = this.next(message.id)) path.push(message);
    return path;
  }

  get last() {
    return this.path.at(-1) ?? null;
  }

  next(id) {
    const ids = this.successors.get(id) ?? [];
    const chosen = this.chosen.get(id);
    return this.messages.get(ids.includes(chosen) ? chosen : ids.at(-1));
  }

  /** Append a message to the path, or to `parent`, and choose it. */
  add(message, parent = this.last?.id ?? ROOT) {
    const id = Math.max(Date.now(), ...[...this.messages.keys()].slice(-1).map((last) => last + 1));
    Object.assign(message, { id, parent, thread: this.id });
    this.put(message);
    this.choose(message);
    this.updated = Date.now();
    if (!this.isNamed && message.role === "user" && parent === ROOT) this.title = titleOf(message);
    return message;
  }

  put(message) {
    if (!this.messages.has(message.id)) {
      if (!this.successors.has(message.parent)) this.successors.set(message.parent, []);
      this.successors.get(message.parent).push(message.id);
    }
    this.messages.set(message.id, message);
  }

  choose(message) {
    this.chosen.set(message.parent, message.id);
  }

  /** The messages that answer the same one, `message` included. */
  siblings({ parent }) {
    return this.successors.get(parent).map((id) => this.messages.get(id));
  }

  rename(title) {
    this.title = title;
    this.isNamed = true;
  }
}

function titleOf({ content, files = [] }) {
  const text = content.trim().replace(/\s+/g, " ") || files.map(({ name }) => name).join(", ");
  return text.length > TITLE_MAX ? `${text.slice(0, TITLE_MAX - 1)}…` : text;
}

function sizeOf({ content, reasoning = "", files = [] }) {
  return files.reduce((sum, { data }) => sum + data.length, content.length + reasoning.length);
}

/** A name that no other conversation has; `crypto.randomUUID` needs https. */
function freshName() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The messages for the model; neighbours of one role are joined, as templates expect turns. */
export function turnsOf(path) {
  const turns = [];
  for (const message of path) {
    const parts = partsOf(message);
    if (!parts.length) continue;
    const last = turns.at(-1);
    if (last?.role === message.role) last.parts.push({ type: "text", text: "\n\n" }, ...parts);
    else turns.push({ role: message.role, parts });
  }
  return turns.map(({ role, parts }) => ({ role, content: simplest(parts) }));
}

/** A message's parts: its files, then its text. */
function partsOf({ content, files = [] }) {
  const texts = [...files.filter(({ kind }) => kind === "text").map(quoted), content].filter(Boolean);
  const pictures = files.filter(({ kind }) => kind === "image").map(({ data }) => ({ type: "image_url", image_url: { url: data } }));
  return [...pictures, ...(texts.length ? [{ type: "text", text: texts.join("\n\n") }] : [])];
}

/** A text where no part is a picture: not every template takes parts. */
function simplest(parts) {
  return parts.every(({ type }) => type === "text") ? parts.map(({ text }) => text).join("") : joined(parts);
}

function joined(parts) {
  const out = [];
  for (const part of parts) {
    if (part.type === "text" && out.at(-1)?.type === "text") out.at(-1).text += part.text;
    else out.push({ ...part });
  }
  return out;
}

/** A text file as a quoted block with its name, in a fence that its text does not contain. */
export function quoted({ name, data }) {
  const longest = Math.max(2, ...[...data.matchAll(/`+/g)].map(([run]) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${name}:\n${fence}\n${data}${data.endsWith("\n") ? "" : "\n"}${fence}`;
}
