/** Makes MathML's elements, and the pieces that formulas are built from. */

import { inAlphabet } from "./latex_symbols.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const ROW = 100;
const THIN = "0.1667em";
const ARROWS = /^[←-⇿⟰-⟿∣∥]$/; // a browser would stretch them beside a high neighbour
const TERMS = new Set(["ord", "letter", "close", "fence"]);
const AFTER_FUNCTION = new Set(["ord", "letter", "op", "integral", "function", "limit"]);

/**
 * A piece of a formula.
 * @typedef {{node: Element, kind: string, core?: Element, hasLimits?: boolean}} Atom
 *   `core` is the operator inside a node with scripts, which has the space around all of it
 */

/** A new element of MathML. */
export function ml(tag, attributes = {}, ...children) {
  const element = document.createElementNS(MATHML, tag);
  for (const name of Object.keys(attributes)) element.setAttribute(name, attributes[name]);
  if (children.length === 1 && typeof children[0] === "string") element.textContent = children[0];
  else for (const child of children.flat()) if (child !== null) element.append(child);
  return element;
}

/** The nodes in rows of at most ROW: a browser looks at all of a row for each that is added. */
export function inRows(nodes) {
  if (nodes.length <= ROW) return nodes;
  const rows = [];
  for (let at = 0; at < nodes.length; at += ROW) rows.push(ml("mrow", {}, nodes.slice(at, at + ROW)));
  return rows;
}

/** One element for several. */
export function joined(nodes) {
  return nodes.length === 1 ? nodes[0] : ml("mrow", {}, nodes);
}

/** A piece that is neither an operator nor a bracket. */
export function ord(node) {
  return { node, kind: "ord" };
}

/** What cannot be read, as it is written. */
export function asWritten(text) {
  return ord(ml("mtext", { class: "unread" }, text));
}

/** A bracket that grows with what it encloses; null for an empty one. */
export function fence(text, form) {
  return text ? ml("mo", { form, fence: "true", stretchy: "true" }, text) : null;
}

/** The piece for a symbol, in the letters of `font`. */
export function symbolAtom({ kind, text }, font) {
  switch (kind) {
    case "letter": return { node: letter(text, font), kind };
    case "ord": return { node: text === "/" ? unspaced(text) : ml("mi", { mathvariant: "normal" }, inAlphabet(text, font)), kind };
    case "fence": return { node: unspaced(text), kind };
    case "open": return { node: ml("mo", { form: "prefix", stretchy: "false" }, text), kind };
    case "close": return { node: ml("mo", { form: "postfix", stretchy: "false" }, text), kind };
    case "op": return operator(text, kind, { largeop: "true", movablelimits: "true" }, true);
    case "limit": return operator(text, kind, { movablelimits: "true" }, true);
    case "integral": return operator(text, kind, { largeop: "true" });
    case "rel": return operator(text, kind, { form: "infix", ...(ARROWS.test(text) ? { stretchy: "false" } : {}) });
    default: return operator(text, kind);
  }
}

function operator(text, kind, attributes = {}, hasLimits = false) {
  const node = ml("mo", attributes, text);
  return { node, kind, core: node, hasLimits };
}

/** A letter or a word; only single letters are slanted by the browser. */
export function letter(text, font) {
  const isUpright = font === "rm" && [...text].length === 1;
  return ml("mi", isUpright ? { mathvariant: "normal" } : {}, inAlphabet(text, font));
}

function unspaced(text) {
  return ml("mo", { lspace: "0", rspace: "0", stretchy: "false" }, text);
}

/** An atom with what stands below and above its right side, or below and above it. */
export function scripted(atom, sub, sup) {
  if (!sub && !sup) return atom;
  const [below, above, both] = atom.hasLimits ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
  const tag = sub && sup ? both : sub ? below : above;
  return { ...atom, node: ml(tag, {}, atom.node, sub, sup) };
}

/** The pieces of a row: what a sign and a function's name are depends on their neighbours. */
export class Row {
  constructor(before = "") {
    this.nodes = [];
    this.before = before;
    this.word = null; // a function's name at the end of the row
    this.relation = null; // a relation there
  }

  add({ node, kind, core }) {
    const isAfterTerm = TERMS.has(this.before);
    if (this.word && AFTER_FUNCTION.has(kind)) this.word.setAttribute("rspace", THIN);
    if (kind === "bin" && core) core.setAttribute("form", isAfterTerm ? "infix" : "prefix");
    const isWord = (kind === "function" || kind === "limit") && core;
    if (isWord) {
      core.setAttribute("lspace", isAfterTerm ? THIN : "0");
      core.setAttribute("rspace", "0");
    }
    if (kind === "rel" && this.relation) { // as in `:=`
      this.relation.setAttribute("rspace", "0");
      core?.setAttribute("lspace", "0");
    }
    this.relation = kind === "rel" ? core : null;
    this.word = isWord ? core : null;
    this.before = kind === "bin" && !isAfterTerm ? "sign" : kind;
    this.nodes.push(node);
  }

  /** Add what is not a term: a space. */
  space(node) {
    this.relation = null;
    this.nodes.push(node);
  }
}
