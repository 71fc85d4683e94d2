/** LaTeX's environments: matrices, cases, and lines that are aligned. */

import { asWritten, fence, joined, ml, ord } from "./mathml.js";

const CELL = new Set(["&", "\\\\", "\\cr", "\\end"]);
const LINE = new Set(["\\\\", "\\cr"]);
const LINES = new Set(["\\hline", "\\toprule", "\\midrule", "\\bottomrule"]);

/** How an environment looks: its brackets, its columns, and whether its cells are set as blocks. */
const MATRIX = { columns: "" };
const ALIGNED = { columns: "pairs", isBlock: true };
const GATHERED = { columns: "", isBlock: true };
const CASES = { open: "{", columns: "left" };
const ENVIRONMENTS = {
  matrix: MATRIX, smallmatrix: { ...MATRIX, isSmall: true },
  pmatrix: { ...MATRIX, open: "(", close: ")" }, bmatrix: { ...MATRIX, open: "[", close: "]" }, Bmatrix: { ...MATRIX, open: "{", close: "}" },
  vmatrix: { ...MATRIX, open: "|", close: "|" }, Vmatrix: { ...MATRIX, open: "‖", close: "‖" },
  array: { columns: "given" }, darray: { columns: "given", isBlock: true }, subarray: { columns: "given", isSmall: true },
  cases: CASES, dcases: { ...CASES, isBlock: true }, rcases: { columns: "left", close: "}" },
  aligned: ALIGNED, align: ALIGNED, split: ALIGNED, eqnarray: { columns: "three", isBlock: true }, alignat: { ...ALIGNED, hasArgument: true }, alignedat: { ...ALIGNED, hasArgument: true }, flalign: ALIGNED,
  gathered: GATHERED, gather: GATHERED, multline: GATHERED, equation: GATHERED, displaymath: GATHERED, math: GATHERED,
};
/** How the columns of a layout are aligned, in turn. */
const SIDES = { pairs: ["right", "left"], left: ["left"], three: ["right", "", "left"], "": [""] };

/** `\begin{…}`, up to its end. */
export function environment(formula) {
  const name = formula.written();
  const kind = name.replace(/\*$/, "");
  if (!Object.hasOwn(ENVIRONMENTS, kind)) return asWritten(`\\begin{${name}}`);
  const spec = ENVIRONMENTS[kind];
  if (formula.peek() === "[") formula.option(); // where the environment stands
  const given = spec.hasArgument || spec.columns === "given" ? formula.written() : "";
  const table = tableOf(formula, name, { ...spec, given });
  const sides = [fence(spec.open, "prefix"), table, fence(spec.close, "postfix")].filter(Boolean);
  return ord(joined(sides));
}

/**
 * A table's element, up to the end of its environment, or of the formula where `name` is empty. A
 * formula of one cell is a row.
 */
export function tableOf(formula, name, spec = ALIGNED) {
  const ends = name ? CELL : new Set([...CELL].filter((end) => end !== "\\end"));
  const rows = [];
  let row = [];
  let isRuled = false;
  for (let isEnd = false; !isEnd;) {
    formula.skipSpaces();
    while (LINES.has(formula.peek())) {
      formula.next();
      formula.skipSpaces();
      isRuled = true;
    }
    const isLeft = spec.columns === "pairs" && row.length % 2 === 1;
    row.push(formula.row(ends, isLeft ? "ord" : "")); // a sign at its beginning stands between terms
    const token = formula.next();
    if (token === "&") continue;
    isEnd = !LINE.has(token);
    if (token === "\\end") formula.written();
    if (LINE.has(token) && formula.peek() === "[") formula.option(); // a distance
    if (!isEnd || row.length > 1 || row[0].length || !rows.length) rows.push({ cells: row, isRuled });
    [row, isRuled] = [[], false];
  }
  if (!name && rows.length === 1 && rows[0].cells.length === 1) return joined(rows[0].cells[0]);
  return table(rows, spec);
}

function table(rows, { columns, given = "", isBlock, isSmall }) {
  const layout = columns === "given" ? given.replace(/[^lcr|]/g, "") : "";
  const made = rows.map(({ cells, isRuled }) => ml("mtr", isRuled ? { class: "ruled" } : {}, cells.map((nodes, column) => {
    const side = layout ? sideIn(layout, column) : sideOf(columns, column);
    return ml("mtd", { ...(side ? { class: side } : {}), ...(isBlock ? { displaystyle: "true" } : {}) }, nodes);
  })));
  const node = ml("mtable", columns === "pairs" ? { class: "pairs" } : {}, made);
  return isSmall ? ml("mstyle", { scriptlevel: "1" }, node) : node;
}

function sideOf(columns, column) {
  const sides = SIDES[columns] ?? [""];
  return sides[column % sides.length];
}

/** A column's classes by `\begin{array}{c|r}`. */
function sideIn(layout, column) {
  const found = layout.match(/\|*[lcr]\|*/g)?.[column] ?? "";
  const side = { l: "left", r: "right" }[found.replaceAll("|", "")] ?? "";
  return [side, found.startsWith("|") ? "barred" : "", found.endsWith("|") ? "closed" : ""].filter(Boolean).join(" ");
}

/** `\substack{a\\b}`. */
export function stacked(formula) {
  formula.skipSpaces();
  const source = formula.written();
  const lines = source.split("\\\\").map((line) => ml("mtr", {}, ml("mtd", {}, formula.inner(line))));
  return ord(ml("mtable", { class: "stacked" }, lines));
}
