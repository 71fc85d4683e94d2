/** The server's tokens: ids with pieces, which are texts, or bytes that are not UTF-8. */

import { post } from "./api.js";

const UTF8 = new TextEncoder();
const SHOWN = { " ": "·", "\u00a0": "⍽", "\n": "⏎", "\r": "␍", "\t": "⇥" };
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}]/gu;

/**
 * @typedef {{id: number, piece: string|number[]}} Token
 * @param {{model: string, content: string}} asked
 * @param {boolean} isPrompt whether special tokens such as `<s>` are recognized, and added
 * @returns {Promise<Token[]>}
 */
export async function tokenize({ model, content }, isPrompt, signal) {
  const body = { model, content, add_special: isPrompt, parse_special: isPrompt, with_pieces: true };
  return (await post("tokenize", body, signal)).tokens;
}

/** The bytes of a token's piece. */
export function bytesOf({ piece }) {
  return typeof piece === "string" ? UTF8.encode(piece) : Uint8Array.from(piece);
}

/** How many bytes a text has in UTF-8. */
export function byteCount(text) {
  return UTF8.encode(text).length;
}

/** A piece with visible whitespace; bytes that are not text are shown in hex. */
export function shownPiece({ piece }) {
  if (typeof piece !== "string") return `⟨${hex(piece)}⟩`;
  return piece.replace(INVISIBLE, (character) => SHOWN[character] ?? `⟨${codeOf(character)}⟩`);
}

/** Bytes in hex, as dumps show them. */
export function hex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

function codeOf(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/**
 * Whether each token of a prompt holds a part of `text`; the others belong to the template.
 * @returns {boolean[]|null} null when the prompt does not contain the unchanged text
 */
export function holding(text, tokens) {
  const pieces = tokens.map(bytesOf);
  const all = latin(pieces.flatMap((bytes) => [...bytes]));
  const wanted = latin(UTF8.encode(text));
  const start = all.lastIndexOf(wanted);
  if (start < 0 || !wanted) return null;
  let at = 0;
  return pieces.map(({ length }) => {
    const from = at;
    at += length;
    return from < start + wanted.length && at > start;
  });
}

/** One character for each byte, so that bytes can be searched as text. */
function latin(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}
