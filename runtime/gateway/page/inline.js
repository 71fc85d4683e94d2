/**
 * Markdown inside a block: emphasis, code, links. The result is a tree of plain objects; only this
 * file decides where a link may point. The time is linear in the length of any text.
 */

const DEEPEST = 16;
const LONGEST_RUN = 6; // asterisks; longer runs are text
const LOOKED_BACK = 8;
const SAFE = new Set(["http:", "https:", "mailto:"]);
const PLAIN = /[^\\`*_~[\]!<&\nh$]+/y;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const RUN = /\*+|_+|~+/y;
const TARGET = /\(\s*(?:<([^<>\n]*)>|((?:[^\s()]|\([^\s()]*\))+))(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?\s*\)/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BARE = /https?:\/\/[^\s<>"`*[\]]+/y;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#\d{1,7}|#x[\da-f]{1,6});/iy;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: "\"", apos: "'", nbsp: "\u00a0" };
const SPACE = /\s/;
const DOLLARS = /\$\$?/y;
const MATH_ENDS = /\\[\s\S]|\$\$?/g; // an escaped character ends nothing, but for ) and ]
const PUNCTUATION = /[\p{P}\p{S}]/u;

/** A link's address as the browser follows it; null for one that is not allowed. */
export function safeAddress(text) {
  try {
    const url = new URL(text); // relative ones would name this server
    return SAFE.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * The nodes of a text: text, code, em, strong, del, link, image and break.
 * @param {string} source
 * @returns {Array<Object>}
 */
export function inlineOf(source) {
  const state = { source, at: 0, nodes: [], brackets: [], ticks: ticksOf(source), math: mathEndsOf(source) };
  while (state.at < source.length) {
    const read = READERS[source[state.at]];
    if (!read?.(state)) plain(state);
  }
  return resolved(state.nodes);
}

const READERS = {
  "\n": (state) => push(state, { type: "break" }, 1),
  "\\": escape,
  "`": codeSpan,
  "*": delimiters,
  "_": delimiters,
  "~": delimiters,
  "[": (state) => bracket(state, "["),
  "!": (state) => state.source[state.at + 1] === "[" && bracket(state, "!["),
  "]": closing,
  "<": (state) => matched(state, AUTOLINK, ([, address]) => linkTo(address, address)),
  "&": (state) => matched(state, ENTITY, entity),
  "h": bareLink,
  "$": dollars,
};

function escape(state) {
  const next = state.source[state.at + 1];
  if (next === "\n") return push(state, { type: "break" }, 2);
  if (next === "(" && formula(state, 2, "\\)")) return true;
  if (next === "[" && formula(state, 2, "\\]")) return true;
  return matched(state, ESCAPED, ([, character]) => ({ type: "text", text: character }));
}

function push(state, node, length) {
  state.nodes.push(node);
  state.at += length;
  return true;
}

function matched(state, pattern, nodeOf) {
  pattern.lastIndex = state.at;
  const found = pattern.exec(state.source);
  return found !== null && push(state, nodeOf(found), found[0].length);
}

function plain(state) {
  PLAIN.lastIndex = state.at;
  const text = PLAIN.exec(state.source)?.[0] ?? state.source[state.at];
  const last = state.nodes.at(-1);
  if (last?.type === "text") last.text += text;
  else state.nodes.push({ type: "text", text });
  state.at += text.length;
}

function entity([whole, name]) {
  if (name[0] !== "#") return { type: "text", text: NAMED[name.toLowerCase()] };
  const code = /x/i.test(name[1]) ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
  return { type: "text", text: code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole };
}

function linkTo(address, text) {
  const href = safeAddress(address);
  const children = [{ type: "text", text }];
  return href ? { type: "link", href, children, depth: 1 } : children[0];
}

/** An address in running text, without the punctuation that ends a sentence. */
function bareLink(state) {
  if (/\w/.test(state.source[state.at - 1] ?? "")) return false;
  BARE.lastIndex = state.at;
  const found = BARE.exec(state.source)?.[0];
  if (!found) return false;
  let end = found.length;
  while (end > 0 && isAfterAddress(found, end)) end -= 1;
  return push(state, linkTo(found.slice(0, end), found.slice(0, end)), end);
}

function isAfterAddress(text, end) {
  const last = text[end - 1];
  return ".,:;!?'_~]".includes(last) || (last === ")" && !text.slice(Math.max(0, end - 200), end).includes("("));
}

/** The places of the runs of backticks, by length: collected once, so that the time is linear. */
function ticksOf(source) {
  const places = new Map();
  for (const { 0: run, index } of source.matchAll(/`+/g)) {
    if (!places.has(run.length)) places.set(run.length, { all: [], next: 0 });
    places.get(run.length).all.push(index);
  }
  return places;
}

function codeSpan(state) {
  TICKS.lastIndex = state.at;
  const run = TICKS.exec(state.source)[0];
  const places = state.ticks.get(run.length);
  while (places.all[places.next] <= state.at) places.next += 1;
  const end = places.all[places.next];
  if (end === undefined) return push(state, { type: "text", text: run }, run.length);
  let text = state.source.slice(state.at + run.length, end).replaceAll("\n", " ");
  const isApart = text.startsWith(" ") && text.endsWith(" ") && /[^ ]/.test(text);
  if (isApart) text = text.slice(1, -1); // spaces that keep backticks apart
  return push(state, { type: "code", text }, end + run.length - state.at);
}

/** The places where formulas may end, by their closing mark. */
function mathEndsOf(source) {
  const places = { "$": { all: [], next: 0 }, "$$": { all: [], next: 0 }, "\\)": { all: [], next: 0 }, "\\]": { all: [], next: 0 } };
  for (const { 0: end, index } of source.matchAll(MATH_ENDS)) {
    // a price is no end: "$5 or $6"
    if (end === "$" && (SPACE.test(source[index - 1] ?? " ") || /[\p{L}\p{N}]/u.test(source[index + 1] ?? ""))) continue;
    places[end]?.all.push(index);
  }
  return places;
}

function dollars(state) {
  DOLLARS.lastIndex = state.at;
  const mark = DOLLARS.exec(state.source)[0];
  const before = state.source[state.at - 1] ?? "";
  const after = state.source[state.at + mark.length] ?? " ";
  const opens = mark === "$$" || (!SPACE.test(after) && !/[\p{L}\p{N}]/u.test(before));
  if (opens && formula(state, mark.length, mark)) return true;
  return push(state, { type: "text", text: mark }, mark.length);
}

/** Read a formula up to `end`, as it is written; returns whether there is one. */
function formula(state, length, end) {
  const places = state.math[end];
  const from = state.at + length;
  while (places.all[places.next] <= from) places.next += 1; // it holds a character at least
  const to = places.all[places.next];
  if (to === undefined) return false;
  return push(state, { type: "math", text: state.source.slice(from, to).trim() }, to + end.length - state.at);
}

function delimiters(state) {
  RUN.lastIndex = state.at;
  const run = RUN.exec(state.source)[0];
  const isMeant = run[0] === "~" ? run.length === 2 : run.length <= LONGEST_RUN;
  if (!isMeant) return push(state, { type: "text", text: run }, run.length);
  const before = state.source[state.at - 1] ?? " ";
  const after = state.source[state.at + run.length] ?? " ";
  const opens = isFlanking(after, before);
  const closes = isFlanking(before, after);
  const node = { type: "run", character: run[0], count: run.length, size: run.length };
  const isWord = run[0] === "_"; // an underscore inside a word is part of it
  node.opens = opens && (!isWord || !closes || PUNCTUATION.test(before));
  node.closes = closes && (!isWord || !opens || PUNCTUATION.test(after));
  return push(state, node, run.length);
}

/** Whether a run flanks `inner`, with `outer` on its other side: CommonMark's rule. */
function isFlanking(inner, outer) {
  if (SPACE.test(inner)) return false;
  return !PUNCTUATION.test(inner) || SPACE.test(outer) || PUNCTUATION.test(outer);
}

function bracket(state, text) {
  state.brackets.push({ place: state.nodes.length, isImage: text === "![" });
  push(state, { type: "text", text }, text.length);
  return push(state, { type: "text", text: "" }, 0); // what follows is not part of the bracket
}

function closing(state) {
  const open = state.brackets.pop();
  TARGET.lastIndex = state.at + 1;
  const found = open && TARGET.exec(state.source);
  if (!found) return push(state, { type: "text", text: "]" }, 1);
  const inside = resolved(state.nodes.splice(open.place).slice(1));
  if (!open.isImage) state.brackets = []; // no link inside a link
  return push(state, pointing(open.isImage, found[1] ?? found[2], inside), 1 + found[0].length);
}

function pointing(isImage, address, inside) {
  const href = safeAddress(address);
  if (isImage) return { type: "image", href, text: plainText(inside), depth: 1 };
  const shown = href ? unlinked(inside) : [...inside, { type: "text", text: ` (${address})` }];
  return { type: "link", href, children: shown, depth: 1 + deepest(inside) };
}

/** The nodes without links: an address inside a link's text is text. */
function unlinked(nodes) {
  return nodes.flatMap((node) => {
    if (node.type === "link") return unlinked(node.children);
    if (node.type === "image") return { ...node, href: null };
    return node.children ? { ...node, children: unlinked(node.children) } : node;
  });
}

/** The plain text of nodes. */
export function plainText(nodes) {
  let text = ""; // added to, not joined: a sum of strings is copied only when it is read
  for (const node of nodes) {
    if (node.type === "break") text += "\n";
    else text += node.text ?? (node.children ? plainText(node.children) : runText(node));
  }
  return text;
}

function runText(node) {
  return node.character.repeat(node.count);
}

function deepest(nodes) {
  return nodes.reduce((most, node) => Math.max(most, node.depth ?? 0), 0);
}

/** The nodes with runs of delimiters turned into emphasis, or into text where they have no match. */
function resolved(nodes) {
  const out = [];
  const openers = { "*": [], "_": [], "~": [] };
  for (const node of nodes) {
    if (node.type === "run" && node.closes) close(node, out, openers);
    if (node.type !== "run") out.push(node);
    else if (node.count) {
      out.push(node);
      if (node.opens) openers[node.character].push(out.length - 1);
    }
  }
  return out.map(settled);
}

/** Match a closing run with the runs opened before it. */
function close(closer, out, openers) {
  while (closer.count) {
    const place = openerFor(closer, out, openers[closer.character]);
    if (place === undefined) return;
    const opener = out[place];
    const used = Math.min(opener.count, closer.count, 2);
    const inside = out.splice(place + 1);
    const depth = 1 + deepest(inside);
    for (const places of Object.values(openers)) while (places.at(-1) > place) places.pop();
    opener.count -= used;
    closer.count -= used;
    if (!opener.count) {
      out.pop();
      openers[closer.character].pop();
    }
    if (depth > DEEPEST) out.push({ type: "text", text: plainText(inside) });
    else out.push({ type: tagOf(closer.character, used), children: inside.map(settled), depth });
  }
}

function tagOf(character, used) {
  if (character === "~") return "del";
  return used === 2 ? "strong" : "em";
}

function settled(node) {
  return node.type === "run" ? { type: "text", text: runText(node) } : node;
}

function openerFor(closer, out, places) {
  for (const place of places.slice(-LOOKED_BACK).reverse()) {
    if (fits(out[place], closer)) return place;
  }
  return undefined;
}

/** CommonMark's rule of three, for runs that can both open and close. */
function fits(opener, closer) {
  if (closer.character === "~" || !(opener.closes || closer.opens)) return true;
  return (opener.size + closer.size) % 3 !== 0 || opener.size % 3 === 0;
}
