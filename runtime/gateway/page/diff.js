/** Finds the words of one text that are not in another, and marks them on the page. */

const MOST_CELLS = 4_000_000; // cells of the table: 2,000 words against 2,000
const WORD = /\S+/g;

/**
 * For each word of `other`, whether it is missing from the longest sequence that both share.
 * @returns {boolean[]|null} null when they are too long to compare
 */
export function differing(first, other) {
  let head = 0;
  while (head < Math.min(first.length, other.length) && first[head] === other[head]) head += 1;
  let tail = 0;
  const shortest = Math.min(first.length, other.length) - head;
  while (tail < shortest && first.at(-1 - tail) === other.at(-1 - tail)) tail += 1;
  const one = first.slice(head, first.length - tail);
  const two = other.slice(head, other.length - tail);
  if ((one.length + 1) * (two.length + 1) > MOST_CELLS) return null;
  return [...Array(head).fill(false), ...unshared(one, two), ...Array(tail).fill(false)];
}

function unshared(one, two) {
  const lengths = sharedLengths(one, two);
  const width = two.length + 1;
  const found = Array(two.length).fill(true);
  let [row, column] = [0, 0];
  while (row < one.length && column < two.length) {
    if (one[row] === two[column]) {
      found[column] = false;
      row += 1;
      column += 1;
    } else if (lengths[(row + 1) * width + column] >= lengths[row * width + column + 1]) row += 1;
    else column += 1;
  }
  return found;
}

/** The length of the longest common subsequence of both texts, from each pair of places on. */
function sharedLengths(one, two) {
  const width = two.length + 1;
  const lengths = new Uint32Array((one.length + 1) * width);
  for (let row = one.length - 1; row >= 0; row -= 1) {
    for (let column = two.length - 1; column >= 0; column -= 1) {
      const at = row * width + column;
      lengths[at] = one[row] === two[column]
        ? lengths[at + width + 1] + 1
        : Math.max(lengths[at + width], lengths[at + 1]);
    }
  }
  return lengths;
}

/**
 * Mark the words of `other` that differ from those of `first`.
 * @param {Element} first
 * @param {Element} other
 * @returns {{words: number, differ: number}|null} null when they are too long to compare
 */
export function markDifferences(first, other) {
  const places = wordsOf(other);
  const differ = differing(wordsOf(first).map(({ word }) => word), places.map(({ word }) => word));
  if (differ === null) return null;
  const marked = new Map();
  places.filter((_, index) => differ[index]).forEach(({ node, start, end }) => {
    if (!marked.has(node)) marked.set(node, []);
    marked.get(node).push({ start, end });
  });
  marked.forEach((ranges, node) => mark(node, ranges));
  return { words: places.length, differ: differ.filter(Boolean).length };
}

/** The words that an element shows, with their places; captions do not count, and a formula is one word. */
function wordsOf(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT, ({ parentElement }) =>
    parentElement.closest("figcaption") || (parentElement.closest("math") && parentElement.localName !== "annotation") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
  const words = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.localName === "annotation") words.push({ word: node.data, node: node.parentElement.closest("math"), start: 0, end: 0 });
    else for (const { 0: word, index } of node.data.matchAll(WORD)) {
      words.push({ word, node, start: index, end: index + word.length });
    }
  }
  return words;
}

/** Put ranges of a text node into <mark>, with the space between neighbours. */
function mark(node, ranges) {
  if (node.localName === "math") {
    const marked = document.createElement("mark");
    node.replaceWith(marked);
    return marked.append(node);
  }
  const text = node.data;
  const parts = [];
  let at = 0;
  for (const { start, end } of joined(ranges, text)) {
    const marked = document.createElement("mark");
    marked.textContent = text.slice(start, end);
    parts.push(text.slice(at, start), marked);
    at = end;
  }
  node.replaceWith(...parts, text.slice(at));
}

function joined(ranges, text) {
  const out = [];
  for (const { start, end } of ranges) {
    const last = out.at(-1);
    if (last && text.slice(last.end, start).trim() === "") last.end = end;
    else out.push({ start, end });
  }
  return out;
}
