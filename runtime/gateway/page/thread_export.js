/** A conversation as a file: markdown to read, or JSON with every branch. */

import { quoted } from "./thread.js";
import { t } from "./words.js";

/** What an exported file says of itself. */
export const FORMAT = "decant-conversation";
export const VERSION = 1;

/** The path as markdown, with a heading for each message. */
export function markdownOf(thread) {
  const system = thread.system ? [`## ${t("System message")}`, thread.system] : [];
  const parts = thread.path.map(({ role, model, content, reasoning, files = [] }) => {
    const who = role === "user" ? t("You") : model;
    const attached = files.map((file) => (file.kind === "text" ? quoted(file) : `[${file.name}]`));
    const thought = reasoning ? [reasoning.replace(/^/gm, "> ")] : [];
    return [`## ${who}`, ...thought, ...attached, content].filter(Boolean).join("\n\n");
  });
  return `${[`# ${thread.title}`, ...system, ...parts].join("\n\n")}\n`;
}

/** All branches as JSON. */
export function jsonOf(thread) {
  const { title, updated, system } = thread;
  const messages = [...thread.messages.values()].map(({ thread: _, ...message }) => message);
  const path = thread.path.map(({ id }) => id);
  return `${JSON.stringify({ format: FORMAT, version: VERSION, title, updated: new Date(updated).toISOString(), system: system ?? "", path, messages }, null, 2)}\n`;
}

/** Hand a text to the browser as a download. */
export function download(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a browser may ask for the place first
}

/** A file's name for a conversation: its title without what file systems refuse. */
export function fileName({ title }, suffix) {
  const name = title.replace(/[\u0000-\u001f\u007f/\\:*?"<>|]+/g, " ").replace(/^[\s.]+|[\s.]+$/g, "").slice(0, 60);
  return `${name || "conversation"}.${suffix}`;
}
