/**
 * LaTeX's formulas as MathML. What is not known is shown as it is written, and what is missing is
 * taken as empty: no text is refused. Each token is read once, and nesting is bounded.
 */

import { COMMANDS, INFIX, SWITCHES } from "./latex_commands.js";
import { SPACES, inAlphabet, signOf, symbolOf } from "./latex_symbols.js";
import { tableOf } from "./latex_tables.js";
import { Row, asWritten, inRows, joined, ml, ord, scripted, symbolAtom } from "./mathml.js";

const LONGEST = 4000; // characters; longer formulas are shown as they are written
const DEEPEST = 24; // groups in groups; deeper ones are shown as they are written
const TOKEN = /\\(?:[a-zA-Z]+|[^])|\s+|\d+(?:\.\d+)?|[^]/uy;
const GROUP = new Set(["}"]);
const OPTION = new Set(["]", "}"]);
const NO_ARGUMENT = new Set(["", "}", "&", "^", "_", "\\\\", "\\end", "\\right", "\\middle"]);

/**
 * A formula's element, or null for one that is shown as text.
 * @param {string} source without the marks around it
 * @param {boolean} isBlock whether it stands between lines
 */
export function formulaOf(source, isBlock) {
  if (source.length > LONGEST || source.trim() === "") return null;
  const formula = new Formula(source);
  const nodes = tableOf(formula, "");
  const mark = isBlock ? "$$" : "$";
  const annotation = ml("annotation", { encoding: "application/x-tex" }, `${mark}${source}${mark}`);
  return ml("math", isBlock ? { display: "block" } : {}, ml("semantics", {}, nodes, annotation));
}

/** Reads a formula's tokens. */
class Formula {
  constructor(source, { depth = 0 } = {}) {
    this.source = source;
    this.at = 0;
    this.depth = depth;
    this.font = "";
    this.read = null; // the token that `peek` has seen
  }

  /** The next token; empty at the end. */
  peek() {
    if (this.read === null) {
      TOKEN.lastIndex = this.at;
      this.read = TOKEN.exec(this.source)?.[0] ?? "";
    }
    return this.read;
  }

  next() {
    const token = this.peek();
    this.at += token.length;
    this.read = null;
    return token;
  }

  /** Read the next token if it is `wanted`. */
  took(wanted) {
    return this.peek() === wanted ? this.next() !== "" : false;
  }

  skipSpaces() {
    while (/^\s/.test(this.peek())) this.next();
  }

  /** Read one level deeper; at the deepest one, the result is `otherwise()`. */
  nested(read, otherwise) {
    if (this.depth >= DEEPEST) return otherwise();
    this.depth += 1;
    const result = read();
    this.depth -= 1;
    return result;
  }

  /** The elements up to one of the tokens `ends`, which is not read, or to the end. */
  row(ends, before = "") {
    const row = new Row(before);
    for (;;) {
      this.skipSpaces();
      const token = this.peek();
      if (token === "" || ends.has(token)) return inRows(row.nodes);
      const name = token[0] === "\\" ? token.slice(1) : token;
      if (token[0] === "\\" && Object.hasOwn(INFIX, name) && this.depth < DEEPEST) return this.infix(row, ends);
      if (token[0] === "\\" && Object.hasOwn(SWITCHES, name)) {
        this.next();
        const rest = this.nested(() => SWITCHES[name](this, () => this.row(ends, row.before)), () => []);
        row.nodes.push(...rest);
      } else if ((token[0] === "\\" || token === "~") && Object.hasOwn(SPACES, name)) {
        this.next();
        row.space(ml("mspace", { width: SPACES[name] }));
      } else {
        const atom = this.scripts("^_'".includes(token) ? ord(ml("mrow")) : this.atom());
        if (atom) row.add(atom);
      }
    }
  }

  /** What `\over` and its like divide: all before it in the group, and all after it. */
  infix(row, ends) {
    const name = this.next().slice(1);
    return this.nested(() => [INFIX[name](joined(row.nodes), joined(this.row(ends)))], () => row.nodes);
  }

  /** One piece, without what is written below and above it; null where a command shows nothing. */
  atom() {
    const token = this.next();
    if (token === "{") return this.group();
    if (token[0] === "\\" && token.length > 1) return this.command(token);
    if (/^\d/.test(token)) return ord(ml("mn", {}, inAlphabet(token, this.font)));
    return symbolAtom(signOf(token), this.font);
  }

  /** A group's inside as one piece; its opening brace is read. */
  group() {
    return this.nested(() => {
      const nodes = this.row(GROUP);
      this.took("}");
      const [first] = nodes;
      if (nodes.length === 1 && first.localName === "mo") { // a sign in braces has no space around it
        first.setAttribute("lspace", "0");
        first.setAttribute("rspace", "0");
      }
      return ord(joined(nodes));
    }, () => asWritten("{"));
  }

  command(token) {
    const name = token.slice(1);
    if (Object.hasOwn(COMMANDS, name)) return this.nested(() => COMMANDS[name](this, name), () => asWritten(token));
    const symbol = symbolOf(name);
    return symbol ? symbolAtom(symbol, this.font) : asWritten(token);
  }

  /** `atom` with what is written below and above it. */
  scripts(atom) {
    let [sub, sup, primes] = [null, null, ""];
    let base = atom;
    for (;;) {
      this.skipSpaces();
      const token = this.peek();
      if (token === "'" && !sup) { primes += "′"; this.next(); }
      else if (token === "^" && !sup) { this.next(); sup = this.argument(); }
      else if (token === "_" && !sub) { this.next(); sub = this.argument(); }
      else if (base && (token === "\\limits" || token === "\\nolimits")) {
        this.next();
        base = { ...base, hasLimits: token === "\\limits" };
        base.core?.setAttribute("movablelimits", "false");
      } else break;
    }
    if (primes) sup = joined([ml("mo", {}, primes), ...(sup ? [sup] : [])]);
    return base ? scripted(base, sub, sup) : sub || sup ? scripted(ord(ml("mrow")), sub, sup) : null;
  }

  /** A command's argument: a group, or the next character; empty where there is none. */
  argument() {
    this.skipSpaces();
    const token = this.peek();
    if (NO_ARGUMENT.has(token)) return ml("mrow");
    if (/^\d/.test(token)) {
      this.at += 1;
      this.read = null;
      return ml("mn", {}, token[0]);
    }
    return this.atom()?.node ?? ml("mrow");
  }

  /** An argument in brackets; null where there is none. */
  option() {
    this.skipSpaces();
    if (!this.took("[")) return null;
    const nodes = this.row(OPTION);
    this.took("]");
    return joined(nodes);
  }

  /** An argument as it is written, without its braces. */
  written() {
    this.skipSpaces();
    if (this.peek() !== "{") return NO_ARGUMENT.has(this.peek()) ? "" : this.next();
    const from = this.at + 1;
    let [open, at] = [1, from];
    for (; at < this.source.length; at += 1) {
      const character = this.source[at];
      if (character === "\\") at += 1;
      else if (character === "{") open += 1;
      else if (character === "}") open -= 1;
      if (!open) break;
    }
    this.at = Math.min(at + 1, this.source.length);
    this.read = null;
    return this.source.slice(from, at);
  }

  /** What `read` returns while letters are those of `font`. */
  inFont(font, read) {
    const before = this.font;
    this.font = font;
    const result = read();
    this.font = before;
    return result;
  }

  /** The elements of another formula, such as one inside a text. */
  inner(source) {
    return new Formula(source, this).row(new Set());
  }
}
