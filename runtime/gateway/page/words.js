/** The page's words in the reader's language: the English text is the key of every other table. */

import { CHINESE } from "./words_zh.js";

const TABLES = { en: {}, zh: CHINESE };
const ATTRIBUTES = ["aria-label", "placeholder", "title", "content"];

/** The first language of the reader that the page has words for. */
export const LANGUAGE = navigator.languages.map((one) => one.slice(0, 2).toLowerCase()).find((one) => one in TABLES) ?? "en";

/** `text` in the reader's language, with each `{name}` replaced by the value of that name. */
export function t(text, values = {}) {
  const found = TABLES[LANGUAGE][text] ?? text;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** A number as the reader's language writes it. */
export function numeral(number, options = {}) {
  return number.toLocaleString(LANGUAGE, options);
}

/** A count with its noun: `one` for 1, else `many`, in which `{count}` stands for the number. */
export function counted(count, one, many) {
  return t(count === 1 ? one : many, { count: numeral(count) });
}

/** A size in bytes as people read it. */
export function sized(nbytes) {
  const [unit, size] = [["MB", nbytes / (1 << 20)], ["kB", nbytes / 1024], ["B", nbytes]].find(([, number]) => number >= 1) ?? ["B", 0];
  return `${numeral(size, { maximumFractionDigits: size < 10 ? 1 : 0 })} ${unit}`;
}

/** Put the words of index.html into the reader's language. */
export function translatePage() {
  document.documentElement.lang = LANGUAGE === "zh" ? "zh-CN" : LANGUAGE;
  if (LANGUAGE === "en") return;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.data.trim();
    if (text) node.data = node.data.replace(text, () => t(text));
  }
  for (const name of ATTRIBUTES) {
    for (const element of document.querySelectorAll(`[${name}]`)) element.setAttribute(name, t(element.getAttribute(name)));
  }
}
