/** A conversation from a file that the page has exported as JSON. */

import { Thread } from "./thread.js";
import { FORMAT, VERSION } from "./thread_export.js";
import { numeral, sized, t } from "./words.js";

const MOST_BYTES = 50_000_000;
const MOST_MESSAGES = 20_000;
const TITLE_MAX = 200;
const LATEST = 8.64e15; // an id is a time, and a later one follows it
const PICTURE = /^data:image\/(?:png|jpeg);base64,[A-Za-z0-9+/]*={0,2}$/;

/** What a message may have besides its place: the type of each value. */
const OF_ALL = { content: isText };
const OF_ANSWERS = {
  model: isText, reasoning: isText, finish: orNull(isText), tokens: orNull(isNumber), used: orNull(isNumber), speed: orNull(isNumber),
  error: orNull(isText), isRaw: isFlag, isStopped: isFlag,
};

/**
 * The conversation in a file, under a new name: no other one is replaced.
 * @param {File} file
 * @returns {Promise<Thread>} throws an Error that says why the file is refused
 */
export async function threadOf(file) {
  const { name } = file;
  if (file.size > MOST_BYTES) throw new Error(t("{name} is too large: a conversation to import has {most} at most.", { name, most: sized(MOST_BYTES) }));
  const found = parsed(await file.text());
  if (found?.format !== FORMAT || !Array.isArray(found.messages)) throw new Error(t("{name} is not a conversation that this page has exported as JSON.", { name }));
  if (found.version !== VERSION) throw new Error(t("{name} has version {version} of the format, and this page reads version {known}.", { name, version: String(found.version), known: VERSION }));
  if (!found.messages.length || found.messages.length > MOST_MESSAGES) throw new Error(t("{name} has {count} messages: a conversation to import has 1 to {most}.", { name, count: numeral(found.messages.length), most: numeral(MOST_MESSAGES) }));
  if (!orNull(isText)(found.system ?? null)) throw new Error(t("{name} is damaged: its system message is not a text.", { name }));
  const messages = messagesIn(found.messages, name);
  const thread = new Thread({ system: found.system, title: isText(found.title) ? found.title.slice(0, TITLE_MAX) : "", isNamed: true }, messages);
  messages.forEach((message) => { message.thread = thread.id; });
  for (const id of Array.isArray(found.path) ? found.path : []) if (thread.messages.has(id)) thread.choose(thread.messages.get(id));
  return thread;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** The messages, each after the one that it answers. */
function messagesIn(list, name) {
  const known = new Set([0]);
  return list.map((given, index) => {
    const damaged = () => new Error(t("{name} is damaged: its message {number} cannot be read.", { name, number: index + 1 }));
    if (typeof given !== "object" || given === null) throw damaged();
    const { id, parent, role } = given;
    const isPlaced = Number.isInteger(id) && id > 0 && id < LATEST && !known.has(id) && known.has(parent);
    if (!isPlaced || !["user", "assistant"].includes(role)) throw damaged();
    known.add(id);
    const message = { role, id, parent };
    for (const [key, isValid] of Object.entries(role === "user" ? OF_ALL : { ...OF_ALL, ...OF_ANSWERS })) {
      if (!isValid(given[key] ?? DEFAULTS[key])) throw damaged();
      message[key] = given[key] ?? DEFAULTS[key];
    }
    if (role === "user" && given.files !== undefined) {
      if (!Array.isArray(given.files) || !given.files.every(isFile)) throw damaged();
      message.files = given.files.map(({ kind, name: file, data, size }) => ({ name: file, kind, data, size }));
    }
    return message;
  });
}

const DEFAULTS = { model: "", reasoning: "", finish: null, tokens: null, used: null, speed: null, error: null, isRaw: false, isStopped: false };

function isFile(file) {
  if (typeof file !== "object" || file === null) return false;
  const { kind, name, data, size } = file;
  return isText(name) && isNumber(size) && isText(data) && (kind === "text" || (kind === "image" && PICTURE.test(data)));
}

function isText(value) {
  return typeof value === "string";
}

function isNumber(value) {
  return typeof value === "number" && value >= 0;
}

function isFlag(value) {
  return typeof value === "boolean";
}

function orNull(isValid) {
  return (value) => value === null || isValid(value);
}
