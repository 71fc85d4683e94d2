/** What LaTeX's commands with arguments make of them. */

import { ACCENTS, LONG_ARROWS, delimiterOf, symbolOf } from "./latex_symbols.js";
import { environment, stacked } from "./latex_tables.js";
import { asWritten, fence, joined, letter, ml, ord } from "./mathml.js";

const RIGHT = new Set(["\\right", "\\middle", "\\end", "\\\\", "&", "}"]);
const LENGTH = /^\s*(-?\d*\.?\d+)\s*(em|ex|mu|pt|px|cm|mm|in)\s*$/;
const MOST_EM = 20;
const EM = { em: 1, ex: 0.45, mu: 1 / 18, pt: 0.1, px: 0.0625, cm: 2.8, mm: 0.28, in: 7 };
const SIZES = { big: "1.2em", Big: "1.6em", bigg: "2em", Bigg: "2.5em" };
const FORMS = { l: "prefix", r: "postfix", m: "infix" };
const KINDS = { l: "open", r: "close", m: "rel" };
const FONTS = {
  mathbf: "bf", mathbfit: "bi", boldsymbol: "bi", bm: "bi", pmb: "bi", symbf: "bf", mathit: "it", mathrm: "rm", mathup: "rm", mathsf: "sf", mathtt: "tt",
  mathbb: "bb", Bbb: "bb", mathcal: "cal", mathscr: "scr", mathfrak: "frak", mathnormal: "", bold: "bf",
};
const AS_WORDS = new Set(["bf", "it", "rm", "sf", "tt"]); // letters side by side are a word
const WORD = /\s*\{([A-Za-z]+)\}/y;
const TEXTS = { text: "", textrm: "", textnormal: "", mbox: "", hbox: "", textup: "", textbf: "bold", textit: "italic", emph: "italic", textsf: "sans", texttt: "mono" };
const FORMULA_IN_TEXT = /\$([^$]+)\$|\\\(([^]*?)\\\)/g;

/** Commands by name; each reads its arguments from the formula. */
export const COMMANDS = {
  frac: (formula) => ord(fraction(formula)),
  dfrac: (formula) => ord(ml("mstyle", { displaystyle: "true", scriptlevel: "0" }, fraction(formula))),
  cfrac: (formula) => ord(ml("mstyle", { displaystyle: "true", scriptlevel: "0" }, fraction(formula))),
  tfrac: (formula) => ord(ml("mstyle", { displaystyle: "false" }, fraction(formula))),
  sfrac: (formula) => ord(fraction(formula)),
  nicefrac: (formula) => ord(fraction(formula)),
  binom: (formula) => ord(enclosed("(", fraction(formula, { linethickness: "0" }), ")")),
  dbinom: (formula) => ord(ml("mstyle", { displaystyle: "true" }, enclosed("(", fraction(formula, { linethickness: "0" }), ")"))),
  tbinom: (formula) => ord(ml("mstyle", { displaystyle: "false" }, enclosed("(", fraction(formula, { linethickness: "0" }), ")"))),
  sqrt,
  begin: environment,
  end: (formula) => asWritten(`\\end{${formula.written()}}`), // of nothing that has begun
  left,
  not: negated,
  substack: stacked,
  operatorname: named,
  boxed: (formula) => ord(ml("mrow", { class: "boxed" }, formula.argument())),
  fbox: (formula) => ord(ml("mrow", { class: "boxed" }, texts(formula, ""))),
  overline: (formula) => ord(ml("mrow", { class: "overlined" }, formula.argument())),
  underline: (formula) => ord(ml("mrow", { class: "underlined" }, formula.argument())),
  cancel: (formula) => ord(ml("mrow", { class: "struck" }, formula.argument())),
  phantom: (formula) => ord(ml("mphantom", {}, formula.argument())),
  hphantom: (formula) => ord(ml("mphantom", {}, formula.argument())),
  vphantom: (formula) => ord(ml("mpadded", { width: "0" }, ml("mphantom", {}, formula.argument()))),
  smash: (formula) => ord(formula.argument()),
  overset: (formula) => over(formula, "mover"),
  stackrel: (formula) => over(formula, "mover"),
  underset: (formula) => over(formula, "munder"),
  pmod: (formula) => ord(ml("mrow", {}, space("1em"), ml("mo", { stretchy: "false" }, "("), word("mod"), space("0.33em"), formula.argument(), ml("mo", { stretchy: "false" }, ")"))),
  mod: () => ord(ml("mrow", {}, space("1em"), word("mod"), space("0.33em"))),
  bmod: () => operator("mod"),
  tag: (formula) => ord(ml("mrow", {}, space("2em"), ml("mtext", {}, `(${formula.written()})`))),
  hspace: spaced, kern: spaced, mkern: spaced, hskip: spaced, mskip: spaced,
  color: ignored, label: ignored, ref: (formula) => asWritten(formula.written()),
  textcolor: (formula) => { formula.written(); return ord(formula.argument()); },
  nonumber: () => null, notag: () => null, allowbreak: () => null, nobreak: () => null, noindent: () => null, strut: () => null, mathstrut: () => null,
  mathord: (formula) => ord(formula.argument()), mathinner: (formula) => ord(formula.argument()),
  mathop: (formula) => ({ node: formula.argument(), kind: "op", hasLimits: true }),
  mathbin: (formula) => ({ node: formula.argument(), kind: "bin" }), mathrel: (formula) => ({ node: formula.argument(), kind: "rel" }),
  mathopen: (formula) => ({ node: formula.argument(), kind: "open" }), mathclose: (formula) => ({ node: formula.argument(), kind: "close" }), mathpunct: (formula) => ({ node: formula.argument(), kind: "punct" }),
};
for (const [name, font] of Object.entries(FONTS)) COMMANDS[name] = (formula) => lettered(formula, font);
for (const [name, look] of Object.entries(TEXTS)) COMMANDS[name] = (formula) => ord(texts(formula, look));
for (const name of Object.keys(ACCENTS)) COMMANDS[name] = accented;
for (const [name, arrow] of Object.entries(LONG_ARROWS)) COMMANDS[name] = (formula) => longArrow(formula, arrow);
for (const [name, size] of Object.entries(SIZES)) for (const side of ["", "l", "r", "m"]) COMMANDS[name + side] = (formula) => sizedFence(formula, size, side);

/** Commands that divide a group into what stands before them and what follows. */
export const INFIX = {
  over: (before, after) => ml("mfrac", {}, before, after),
  atop: (before, after) => ml("mfrac", { linethickness: "0" }, before, after),
  choose: (before, after) => enclosed("(", ml("mfrac", { linethickness: "0" }, before, after), ")"),
};

/** Commands that change the rest of their group, which `rest` reads. */
export const SWITCHES = {
  displaystyle: (_, rest) => [ml("mstyle", { displaystyle: "true", scriptlevel: "0" }, rest())],
  textstyle: (_, rest) => [ml("mstyle", { displaystyle: "false", scriptlevel: "0" }, rest())],
  scriptstyle: (_, rest) => [ml("mstyle", { displaystyle: "false", scriptlevel: "1" }, rest())],
  scriptscriptstyle: (_, rest) => [ml("mstyle", { displaystyle: "false", scriptlevel: "2" }, rest())],
  rm: (formula, rest) => formula.inFont("rm", rest),
  bf: (formula, rest) => formula.inFont("bf", rest),
  it: (formula, rest) => formula.inFont("it", rest),
  cal: (formula, rest) => formula.inFont("cal", rest),
  tt: (formula, rest) => formula.inFont("tt", rest),
  sf: (formula, rest) => formula.inFont("sf", rest),
};
for (const size of ["tiny", "small", "normalsize", "large", "Large", "LARGE", "huge", "Huge", "footnotesize", "scriptsize", "centering"]) SWITCHES[size] = (_, rest) => rest();

function fraction(formula, look = {}) {
  return ml("mfrac", look, formula.argument(), formula.argument());
}

function enclosed(open, node, close) {
  return ml("mrow", {}, fence(open, "prefix"), node, fence(close, "postfix"));
}

function word(text) {
  return ml("mi", [...text].length === 1 ? { mathvariant: "normal" } : {}, text);
}

function operator(text) {
  const node = ml("mo", {}, text);
  return { node, kind: "bin", core: node };
}

function space(width) {
  return ml("mspace", { width });
}

function sqrt(formula) {
  const degree = formula.option();
  const inside = formula.argument();
  return ord(degree ? ml("mroot", {}, inside, degree) : ml("msqrt", {}, inside));
}

/** `\left( … \middle| … \right)`: brackets that grow with what they enclose. */
function left(formula) {
  const open = delimiter(formula);
  if (open === undefined) return asWritten("\\left");
  const parts = [fence(open, "prefix")];
  for (;;) {
    parts.push(joined(formula.row(RIGHT)));
    const token = formula.peek();
    if (token !== "\\middle" && token !== "\\right") break; // it has no end
    formula.next();
    const found = delimiter(formula);
    parts.push(fence(found, token === "\\right" ? "postfix" : "infix"));
    if (token === "\\right") break;
  }
  return ord(joined(parts.filter(Boolean)));
}

/** The delimiter that follows, which is read; undefined for none. */
function delimiter(formula) {
  formula.skipSpaces();
  const found = formula.peek() ? delimiterOf(formula.peek()) : undefined;
  if (found !== undefined) formula.next();
  return found;
}

function sizedFence(formula, size, side) {
  const text = delimiter(formula);
  if (!text) return null;
  const form = FORMS[side] ?? (symbolKind(text) === "close" ? "postfix" : "prefix");
  const node = ml("mo", { form, stretchy: "true", minsize: size, maxsize: size, ...(side === "m" ? {} : { lspace: "0", rspace: "0" }) }, text);
  return { node, kind: KINDS[side] ?? symbolKind(text) };
}

function symbolKind(text) {
  if (")]}⟩⌋⌉".includes(text)) return "close";
  return "([{⟨⌊⌈".includes(text) ? "open" : "ord";
}

function lettered(formula, font) {
  WORD.lastIndex = formula.at;
  const found = AS_WORDS.has(font) ? WORD.exec(formula.source) : null;
  if (!found) return ord(formula.inFont(font, () => formula.argument()));
  formula.written();
  return ord(letter(found[1], font));
}

/** A text among the symbols; it may hold formulas itself. */
function texts(formula, look) {
  const source = formula.written();
  const nodes = [];
  const say = (text) => { if (text) nodes.push(ml("mtext", look ? { class: look } : {}, unescaped(text))); };
  let at = 0;
  for (const { 0: whole, 1: inDollars, 2: inside, index } of source.matchAll(FORMULA_IN_TEXT)) {
    say(source.slice(at, index));
    nodes.push(joined(formula.inner(inDollars ?? inside)));
    at = index + whole.length;
  }
  say(source.slice(at));
  return joined(nodes);
}

/** A text without its escapes; MathML would drop spaces at its ends. */
function unescaped(text) {
  return text.replace(/\\([%$#&_{} ])/g, "$1").replaceAll("~", " ").replaceAll("``", "“").replaceAll("''", "”").replace(/\s/g, "\u00a0");
}

function named(formula) {
  const hasLimits = formula.took("*");
  const text = formula.written().replace(/\\[,:;! ]/g, "\u2009").replace(/\\mathrm|\\text|[{}]/g, "");
  const node = ml("mo", hasLimits ? { movablelimits: "true" } : {}, text);
  return { node, kind: hasLimits ? "limit" : "function", core: node, hasLimits };
}

/** `\not=`: the next symbol, crossed out. */
function negated(formula) {
  formula.skipSpaces();
  const atom = /^[{}&]?$/.test(formula.peek()) ? null : formula.atom();
  if (!atom) return asWritten("\\not");
  const crossed = atom.node.childElementCount === 0 ? `${atom.node.textContent}\u0338`.normalize() : "";
  if (crossed) atom.node.textContent = crossed;
  return atom;
}

function accented(formula, name) {
  const [mark, isWide = false, side] = ACCENTS[name];
  const sign = ml("mo", { stretchy: String(isWide) }, mark);
  const base = formula.argument();
  const hasLimits = name.endsWith("brace") || name.endsWith("bracket"); // what is written at a brace
  const node = side ? ml("munder", { accentunder: "true" }, base, sign) : ml("mover", { accent: "true" }, base, sign);
  return { node, kind: "ord", hasLimits };
}

function over(formula, tag) {
  const mark = formula.argument();
  const base = formula.argument();
  const core = base.localName === "mo" ? base : undefined;
  return { node: ml(tag, {}, base, mark), kind: core ? "rel" : "ord", core };
}

function longArrow(formula, arrow) {
  const below = formula.option();
  const above = formula.argument();
  const padded = (inside) => ml("mrow", {}, space("0.4em"), inside, space("0.4em"));
  const node = ml("mo", { stretchy: "true", form: "infix", lspace: "0.2778em", rspace: "0.2778em" }, arrow);
  const marks = [...(below ? [padded(below)] : []), padded(above)];
  return { node: ml(below ? "munderover" : "mover", {}, node, marks), kind: "rel", core: node };
}

function spaced(formula) {
  if (formula.took("*")) formula.skipSpaces();
  const found = LENGTH.exec(formula.written());
  if (!found) return null;
  const em = Math.max(-MOST_EM, Math.min(MOST_EM, Number(found[1]) * EM[found[2]]));
  return ord(space(`${em.toFixed(3)}em`));
}

function ignored(formula) {
  formula.written();
  return null;
}
