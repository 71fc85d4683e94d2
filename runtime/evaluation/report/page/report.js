"use strict";
// Filters, sorts and searches the items; the page is complete without it.

const list = document.getElementById("list");
const filters = document.getElementById("filters");
const help = document.getElementById("help");
const items = [...list.querySelectorAll("details.item")].map((element, place) => ({
  element,
  place,
  line: Number(element.dataset.line),
  verdicts: element.dataset.verdicts.trim().split(" "),
  columns: JSON.parse(element.dataset.columns),
  text: element.textContent.toLowerCase(),
}));

function field(name) {
  const found = filters.elements.namedItem(name);
  return found ? found.value : "";
}

function isShown(item) {
  const verdict = field("verdict"), model = field("model"), text = field("text").toLowerCase();
  const verdicts = model === "" ? item.verdicts : [item.verdicts[Number(model)]];
  if (verdict && !verdicts.includes(verdict)) return false;
  if (text && !item.text.includes(text)) return false;
  return [...filters.querySelectorAll("select[data-column]")].every(
    ({ value, dataset }) => value === "*" || item.columns[dataset.column] === value.slice(1));
}

function update() {
  let count = 0;
  for (const item of items) {
    item.element.hidden = !isShown(item);
    count += item.element.hidden ? 0 : 1;
  }
  filters.querySelector("output").textContent = `${count} of ${items.length}`;
}

function sort() {
  const key = field("order");
  const ordered = [...items].sort((a, b) => a[key] - b[key] || a.place - b.place);
  list.append(...ordered.map((item) => item.element));
}

function step(by) {
  const shown = [...list.children].filter((element) => !element.hidden);
  const at = shown.findIndex((element) => element.contains(document.activeElement));
  const next = shown[at < 0 ? (by > 0 ? 0 : -1) : at + by];
  if (!next) return;
  if (at >= 0) shown[at].open = false;
  next.open = true;
  next.querySelector("summary").focus({ preventScroll: true });
  next.scrollIntoView({ block: "start" });
}

function onKey(event) {
  const isTyping = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && isTyping) return event.target.blur();
  if (isTyping || help.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    j: () => step(1),
    k: () => step(-1),
    "/": () => filters.elements.namedItem("text").focus(),
    "?": () => help.showModal(),
  };
  const action = Object.hasOwn(actions, event.key) && actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

filters.hidden = false;
filters.addEventListener("input", update);
filters.addEventListener("submit", (event) => event.preventDefault());
filters.elements.namedItem("order").addEventListener("change", sort);
filters.elements.namedItem("help").addEventListener("click", () => help.showModal());
document.addEventListener("keydown", onKey);
update();
