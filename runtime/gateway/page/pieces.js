/** Tokens as the server gives them: ids with pieces that are texts, or bytes where they are none. */

import { post } from "./api.js";

const UTF8 = new TextEncoder();
const SHOWN = { " ": "·", "\u00a0": "⍽", "\n": "⏎", "\r": "␍", "\t": "⇥" };
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}]/gu;

/**
 * @typedef {{id: number, piece: string|number[]}} Token
 * @param {{model: string, content: string}} asked
 * @param {boolean} isPrompt whether `<s>` and its like are read as the tokens they name, and added
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

/** A piece with its whitespace made visible; bytes that are no text are written in hex. */
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
 * Which tokens of a prompt hold a part of `text`: the rest is the template's.
 * @returns {boolean[]|null} null when the prompt does not hold the text as it is
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
