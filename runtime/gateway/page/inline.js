/**
 * Markdown inside a block: emphasis, code, links. The result is a tree of plain objects; only this
 * file decides where a link may point. The time is linear in the length of any text. No mark reaches
 * further than REACH, so that the beginning of a long text is final while its end is written.
 */

const DEEPEST = 16;
const LONGEST_RUN = 6; // asterisks; longer runs are text
const LOOKED_BACK = 8;
const REACH = 4000; // characters between the marks of one emphasis, link, formula or piece of code
const SAFE = new Set(["http:", "https:", "mailto:"]);
const PLAIN = /[^\\`*_~[\]!<&\nh$]+/y;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const RUN = /\*+|_+|~+/y;
const TARGET = /\(\s*(?:<([^<>\n]*)>|((?:[^\s()]|\([^\s()]*\))+))(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?\s*\)/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const UNCLOSED = /<(?:https?:\/\/|mailto:)[^\s<>]+$/y;
const BARE = /https?:\/\/[^\s<>"`*[\]]+/y;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#\d{1,7}|#x[\da-f]{1,6});/iy;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: "\"", apos: "'", nbsp: "\u00a0" };
const SPACE = /\s/;
const WIDE = /[\u2e80-\u9fff\uac00-\ud7af\uff01-\uffee]/; // Chinese, Japanese, Korean
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
 * The nodes of a text: text, code, math, em, strong, del, link, image and break.
 * @param {string} source
 * @param {number} [from] where to begin: 0, or what `settledEnd` has returned for an earlier text
 * @returns {Array<Object>}
 */
export function inlineOf(source, from = 0) {
  return resolved(read(source, from).nodes);
}

function read(source, from) {
  const state = { source, at: from, nodes: [], brackets: [], open: [], ticks: ticksOf(source, from), math: mathEndsOf(source, from) };
  while (state.at < source.length) {
    const reader = READERS[source[state.at]];
    if (!reader?.(state)) plain(state);
  }
  return state;
}

/**
 * The last place at which a line may end, and up to which no longer text changes the nodes; `from` where
 * there is none. The nodes before it and those after it are those of the whole text.
 */
export function settledEnd(source, from) {
  const state = read(source, from);
  const nodes = resolved(state.nodes);
  const runs = nodes.filter(({ opens }) => opens);
  const open = [...state.open, ...state.brackets.map(({ at }) => at), ...runs.map(({ at }) => at)];
  const limit = Math.min(source.length - 1, ...open.filter((at) => source.length - at <= REACH));
  for (let place = nodes.length - 1; place >= 0; place -= 1) {
    const { type, at } = nodes[place];
    const end = Math.min(nodes[place + 1]?.at ?? source.length, limit);
    if (type === "break" && end === nodes[place + 1]?.at) return end;
    if (type !== "text" || nodes[place].isJoined || at >= end) continue;
    for (let cut = end; cut > Math.max(at, from); cut -= 1) if (isApart(source, cut)) return cut;
  }
  return from;
}

/** Whether a line may end before a place: after a space, or between characters that need none. */
function isApart(source, place) {
  return source[place - 1] === " " || (WIDE.test(source[place - 1]) && WIDE.test(source[place]));
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
  "<": autolink,
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

function push(state, node, length, at = state.at) {
  state.nodes.push({ ...node, at });
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
  else state.nodes.push({ type: "text", text, at: state.at });
  state.at += text.length;
}

function autolink(state) {
  UNCLOSED.lastIndex = state.at;
  if (UNCLOSED.test(state.source)) state.open.push(state.at);
  return matched(state, AUTOLINK, ([, address]) => linkTo(address, address));
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
function ticksOf(source, from) {
  const places = new Map();
  for (const { 0: run, index } of matchesFrom(source, /`+/g, from)) {
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
  if (isBeyond(state, end)) return push(state, { type: "text", text: run }, run.length);
  let text = state.source.slice(state.at + run.length, end).replaceAll("\n", " ");
  const isPadded = text.startsWith(" ") && text.endsWith(" ") && /[^ ]/.test(text);
  if (isPadded) text = text.slice(1, -1); // spaces that keep backticks apart
  return push(state, { type: "code", text }, end + run.length - state.at);
}

/** Whether the end of what begins here is too far, or has not been written yet. */
function isBeyond(state, end) {
  if (end === undefined) state.open.push(state.at);
  return end === undefined || end - state.at > REACH;
}

function matchesFrom(source, pattern, from) {
  const own = new RegExp(pattern);
  own.lastIndex = from;
  return source.matchAll(own);
}

/** The places where formulas may end, by their closing mark. */
function mathEndsOf(source, from) {
  const places = { "$": { all: [], next: 0 }, "$$": { all: [], next: 0 }, "\\)": { all: [], next: 0 }, "\\]": { all: [], next: 0 } };
  for (const { 0: end, index } of matchesFrom(source, MATH_ENDS, from)) {
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
  if (isBeyond(state, to)) return false;
  if (end === "$" && dollarIn(state.source, from, to)) return false; // prices: "$5, $6 and US$"
  const isBlock = end === "$$" || end === "\\]";
  return push(state, { type: "math", isBlock, text: state.source.slice(from, to).trim() }, to + end.length - state.at);
}

/** Whether there is a dollar that is not escaped. */
function dollarIn(source, from, to) {
  let at = source.indexOf("$", from);
  while (at < to && source[at - 1] === "\\") at = source.indexOf("$", at + 1);
  return at < to;
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
  state.brackets.push({ place: state.nodes.length, isImage: text === "![", at: state.at });
  push(state, { type: "text", text }, text.length);
  return push(state, { type: "text", text: "" }, 0); // what follows is not part of the bracket
}

function closing(state) {
  const open = state.brackets.pop();
  TARGET.lastIndex = state.at + 1;
  const isNear = open && state.at - open.at <= REACH;
  const found = isNear ? TARGET.exec(state.source) : null;
  if (!found || found[0].length > REACH) {
    if (isNear && "(".startsWith(state.source[state.at + 1] ?? "")) state.open.push(open.at); // its address may follow
    return push(state, { type: "text", text: "]" }, 1);
  }
  const inside = resolved(state.nodes.splice(open.place).slice(1));
  if (!open.isImage) state.brackets = []; // no link inside a link
  return push(state, pointing(open.isImage, found[1] ?? found[2], inside), 1 + found[0].length, open.at);
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
    const { at } = opener;
    if (depth > DEEPEST) out.push({ type: "text", text: plainText(inside), at, isJoined: true });
    else out.push({ type: tagOf(closer.character, used), children: inside.map(settled), depth, at });
  }
}

function tagOf(character, used) {
  if (character === "~") return "del";
  return used === 2 ? "strong" : "em";
}

function settled(node) {
  return node.type === "run" ? { type: "text", text: runText(node), at: node.at, opens: node.opens } : node;
}

function openerFor(closer, out, places) {
  for (const place of places.slice(-LOOKED_BACK).reverse()) {
    if (closer.at - out[place].at <= REACH && fits(out[place], closer)) return place;
  }
  return undefined;
}

/** CommonMark's rule of three, for runs that can both open and close. */
function fits(opener, closer) {
  if (closer.character === "~" || !(opener.closes || closer.opens)) return true;
  return (opener.size + closer.size) % 3 !== 0 || opener.size % 3 === 0;
}
