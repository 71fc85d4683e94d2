/**
 * Markdown's blocks, read from lines: the part that CommonMark and GitHub share and models write.
 *
 * Left out on purpose: HTML (shown as text), indented code (fences mark code), underlined headings
 * (a line of dashes is a rule) and definitions of links. Every step looks at a line a bounded
 * number of times, so that no text takes long.
 */

const DEEPEST = 12; // nesting of lists and quotes; deeper levels are text
const FENCE = /^[ \t]*(`{3,}|~{3,})(.*)$/s;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>[ ]?/;
const MARKER = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:([ \t]+)(?=\S)|[ \t]*$)/;
const DELIMITERS = /^[ \t|:-]*$/;
const DELIMITER = /^:?-+:?$/;
const MOST_COLUMNS = 100; // a row with more is text
export const MOST_PADDING = 10_000; // missing cells that are added; beyond, rows stay short
const SETS = String.raw`\{(?:equation|align|alignat|flalign|gather|multline|eqnarray)\*?\}`; // environments that are formulas by themselves
const MATH = [/^[ \t]*\$\$(?!\$)/, /^[ \t]*\\\[/, new RegExp(String.raw`^[ \t]*(?=\\begin${SETS})`)]; // how a formula begins, and below how it ends
const MATH_ENDS = [/\$\$[ \t]*$/, /\\\][ \t]*$/, new RegExp(String.raw`(?<=\\end${SETS})[ \t]*$`)];
const MATH_MARKS = ["$$", "\\]", null];
const TAB = "    ";

/**
 * The blocks of `text`, each with `start`, where in the text it begins.
 * @param {string} text
 * @returns {Array<Object>}
 */
export function blocksOf(text) {
  const lines = [];
  let start = 0;
  for (const line of text.split("\n")) {
    lines.push({ text: line.endsWith("\r") ? line.slice(0, -1) : line, start });
    start += line.length + 1;
  }
  return parsed(lines, 0);
}

function parsed(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at].text)) { at += 1; continue; }
    const { block, next } = blockAt(lines, at, depth);
    blocks.push({ ...block, start: lines[at].start });
    at = next;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const nested = depth < DEEPEST ? quoteAt(lines, at, depth) ?? ruleAt(lines, at) ?? listAt(lines, at, depth) : null;
  return fenceAt(lines, at) ?? mathAt(lines, at) ?? headingAt(lines, at) ?? nested ?? tableAt(lines, at) ?? paragraphAt(lines, at);
}

function isBlank(line) {
  return line.trim() === "";
}

/** Whether a line ends the paragraph before it. */
function interrupts(lines, at) {
  const { text, goesOn } = lines[at];
  if (goesOn) return false;
  const marker = MARKER.exec(text);
  const isItem = marker?.[3] !== undefined && (!/\d/.test(marker[2]) || /^1[.)]$/.test(marker[2]));
  return isItem || isFence(text) || mathKind(text) >= 0 || HEADING.test(text) || RULE.test(text) || QUOTE.test(text) || isTable(lines, at);
}

function isFence(line) {
  const found = FENCE.exec(line);
  return found !== null && !(found[1][0] === "`" && found[2].includes("`"));
}

function fenceAt(lines, at) {
  if (!isFence(lines[at].text)) return null;
  const [, fence, info] = FENCE.exec(lines[at].text);
  const indent = indentOf(lines[at].text);
  const inside = [];
  let next = at + 1;
  while (next < lines.length && !closes(lines[next].text, fence)) {
    inside.push(dedented(lines[next].text, indent));
    next += 1;
  }
  const isClosed = next < lines.length;
  const block = { type: "code", isClosed, language: info.trim().split(/\s/)[0], text: inside.join("\n") };
  return { block, next: next + 1 };
}

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text[0] === fence[0] && text === fence[0].repeat(text.length);
}

/** Which of MATH begins in a line, without more text after its end; -1 for none. */
function mathKind(line) {
  return MATH.findIndex((begin, kind) => {
    const found = begin.exec(line);
    if (!found || MATH_MARKS[kind] === null) return found !== null;
    const rest = line.slice(found[0].length);
    const closing = rest.indexOf(MATH_MARKS[kind]);
    return closing < 0 || rest.slice(closing + 2).trim() === "";
  });
}

/** A formula between lines: up to its end, or to a blank line, where it is not closed. */
function mathAt(lines, at) {
  const kind = mathKind(lines[at].text);
  if (kind < 0) return null;
  const inside = [lines[at].text.replace(MATH[kind], "")];
  let next = at + 1;
  while (!MATH_ENDS[kind].test(inside.at(-1)) && next < lines.length && !isBlank(lines[next].text)) {
    inside.push(lines[next].text);
    next += 1;
  }
  const isClosed = MATH_ENDS[kind].test(inside.at(-1));
  inside.push(inside.pop().replace(MATH_ENDS[kind], ""));
  return { block: { type: "math", isClosed, text: inside.map((line) => line.trim()).join("\n").trim() }, next };
}

function headingAt(lines, at) {
  const found = HEADING.exec(lines[at].text);
  if (!found) return null;
  const text = lines[at].text.slice(found[0].length).trim();
  return { block: { type: "heading", level: found[1].length, text: withoutClosingHashes(text) }, next: at + 1 };
}

function withoutClosingHashes(text) {
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  return end === 0 || /[ \t]/.test(text[end - 1]) ? text.slice(0, end).trim() : text;
}

function ruleAt(lines, at) {
  return RULE.test(lines[at].text) ? { block: { type: "rule" }, next: at + 1 } : null;
}

function quoteAt(lines, at, depth) {
  let next = at;
  const inside = [];
  while (next < lines.length && QUOTE.test(lines[next].text)) {
    inside.push({ ...lines[next], text: lines[next].text.replace(QUOTE, "") });
    next += 1;
  }
  return inside.length ? { block: { type: "quote", blocks: parsed(inside, depth + 1) }, next } : null;
}

function listAt(lines, at, depth) {
  const first = MARKER.exec(lines[at].text);
  if (!first) return null;
  const kind = first[2].at(-1);
  const items = [];
  const starts = [];
  let next = at;
  let isLoose = false;
  while (next < lines.length) {
    const marker = MARKER.exec(lines[next].text);
    if (marker?.[2].at(-1) !== kind || RULE.test(lines[next].text)) break;
    const { inside, after } = itemAt(lines, next, marker);
    items.push(parsed(inside, depth + 1));
    starts.push(lines[next].start);
    next = after;
    while (next < lines.length && isBlank(lines[next].text)) next += 1;
    isLoose ||= inside.some(({ text }, index) => isBlank(text) && index < inside.length - 1)
      || (next > after && next < lines.length && MARKER.exec(lines[next].text)?.[2].at(-1) === kind);
  }
  const ordered = /\d/.test(first[2]);
  return { block: { type: "list", ordered, first: ordered ? parseInt(first[2], 10) : 1, isLoose, items, starts }, next };
}

/** The lines of one list item, without its marker and the indentation. */
function itemAt(lines, at, marker) {
  const indent = marker[1].replaceAll("\t", TAB).length;
  const gap = marker[3] === undefined || marker[3].length > 4 ? 1 : marker[3].length;
  const width = indent + marker[2].length + gap;
  const inside = [{ ...lines[at], text: lines[at].text.slice(marker[0].length) }];
  let after = at + 1;
  for (; after < lines.length; after += 1) {
    const { text, goesOn } = lines[after];
    let isLazy = goesOn;
    if (goesOn) {
      if (!isParagraph(lines[after - 1].text)) break;
    } else if (isBlank(text)) {
      const following = nextFilled(lines, after);
      if (following === null || !belongs(following, indent, width)) break;
    } else if (!belongs(text, indent, width)) {
      if (MARKER.test(text) || interrupts(lines, after) || !isParagraph(lines[after - 1].text)) break;
      isLazy = !/^[ \t]|\|/.test(text); // decided once, and passed to nested items
    }
    inside.push(goesOn ? lines[after] : { ...lines[after], text: dedented(text, width), goesOn: isLazy });
  }
  return { inside, after };
}

/** Whether a line may continue on one without indentation. */
function isParagraph(line) {
  return !isBlank(line) && !isFence(line);
}

/** Whether a line belongs to an item; models indent nested lines by two for any marker. */
function belongs(line, indent, width) {
  const own = indentOf(line);
  return own >= width || (own >= indent + 2 && MARKER.test(line));
}

/** The next line that is not blank, within 8 lines, so that the time stays linear. */
function nextFilled(lines, at) {
  for (let next = at; next < Math.min(lines.length, at + 8); next += 1) {
    if (!isBlank(lines[next].text)) return lines[next].text;
  }
  return null;
}

function indentOf(line) {
  const spaces = /^[ \t]*/.exec(line)[0];
  return spaces.replaceAll("\t", TAB).length;
}

function dedented(line, width) {
  const spaces = /^[ \t]*/.exec(line)[0];
  return spaces.replaceAll("\t", TAB).slice(width) + line.slice(spaces.length);
}

function isTable(lines, at) {
  const delimiters = lines[at + 1]?.text ?? "";
  if (!lines[at].text.includes("|") || !delimiters.includes("|") || !DELIMITERS.test(delimiters)) return false;
  const sides = cellsOf(delimiters);
  return sides.length > 0 && sides.length <= MOST_COLUMNS && sides.every((side) => DELIMITER.test(side))
    && cellsOf(lines[at].text).length === sides.length;
}

function tableAt(lines, at) {
  if (!isTable(lines, at)) return null;
  const sides = cellsOf(lines[at + 1].text).map(sideOf);
  const rows = [];
  const missing = []; // cells, by row
  let next = at + 2;
  let padding = MOST_PADDING;
  while (next < lines.length && lines[next].text.includes("|") && !isFence(lines[next].text)) {
    const cells = cellsOf(lines[next].text).slice(0, sides.length);
    const lacking = Math.min(sides.length - cells.length, padding);
    padding -= lacking;
    missing.push(lacking);
    rows.push([...cells, ...Array(lacking).fill("")]);
    next += 1;
  }
  return { block: { type: "table", sides, head: cellsOf(lines[at].text), rows, lacking: missing }, next };
}

function sideOf(delimiter) {
  if (!delimiter.endsWith(":")) return "";
  return delimiter.startsWith(":") ? "middle" : "right";
}

/** The cells of a table's row, split at bars that are not escaped. */
function cellsOf(line) {
  const cells = line.trim().replaceAll("\\|", "\0").split("|").map((cell) => cell.replaceAll("\0", "|").trim());
  if (cells[0] === "") cells.shift();
  if (cells.at(-1) === "") cells.pop();
  return cells;
}

function paragraphAt(lines, at) {
  let next = at + 1;
  while (next < lines.length && !isBlank(lines[next].text) && !interrupts(lines, next)) next += 1;
  const text = lines.slice(at, next).map((line) => line.text.trim()).join("\n");
  return { block: { type: "paragraph", text }, next };
}
