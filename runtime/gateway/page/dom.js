/** Makes the page's elements from names and texts; it never parses markup. */

import { TOUCH } from "./focus.js";
import { t } from "./words.js";

/**
 * A new element.
 * @param {string} tag
 * @param {Object<string, unknown>} [properties] `on…` listens, `class` and names with a dash are
 *   attributes, the rest are properties
 * @param {...(Node|string|null|Array)} children
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  for (const child of children.flat()) if (child !== null) element.append(child);
  return element;
}

let named = 0;

/** An id that no other element has. */
export function freshId(prefix) {
  named += 1;
  return `${prefix}-${named}`;
}

/** The element of `root` that carries `data-NAME`. */
export function part(root, name) {
  return root.querySelector(`[data-${name}]`);
}

/** Announce `text` to a screen reader, once. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  announcer.textContent = "";
  // a screen reader does not repeat an unchanged region
  setTimeout(() => { announcer.textContent = text; }, 50);
}

/**
 * Call `act` at most once a frame, with the newest arguments; slow calls run less often, so that
 * three quarters of the time remain for the reader.
 */
export function oncePerFrame(act) {
  let asked = false;
  let free = 0;
  const draw = () => requestAnimationFrame(() => {
    asked = false;
    const began = performance.now();
    act();
    free = performance.now() + 3 * (performance.now() - began);
  });
  return () => {
    if (asked) return;
    asked = true;
    const wait = free - performance.now();
    if (wait > 16) setTimeout(draw, wait); // a frame
    else draw();
  };
}

const frames = new MessageChannel();
const waiting = [];
frames.port1.onmessage = () => waiting.splice(0).forEach((act) => act());

/** Call `act` when the frame that is being prepared has been drawn. */
export function afterFrame(act) {
  waiting.push(act);
  frames.port2.postMessage(null);
}

/** A button that copies the result of `text()`, and shows that it did. */
export function copyButton(text, label = "Copy") {
  const button = el("button", { type: "button", class: "quiet small" }, t(label));
  button.addEventListener("click", async () => {
    const copied = await copy(text());
    button.textContent = t(copied ? "Copied" : "Not copied");
    announce(button.textContent);
    setTimeout(() => { button.textContent = t(label); }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // without HTTPS there is no clipboard object
  }
}

function copyBySelection(text) {
  const before = document.activeElement;
  const area = el("textarea", { value: text, class: "unseen" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  return copied;
}

/** Let a textarea grow with its text; the style sheet says how far. */
export function growing(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
  area.addEventListener("input", fit);
  return fit;
}

/** Whether a key belongs to text that is being composed; Safari tells of the last one by 229 only. */
export function isComposed({ isComposing, keyCode }) {
  return isComposing || keyCode === 229; // UI Events: an input method has processed the key
}

/** Call `act` on Escape while the view `root` is shown, wherever the focus is. */
export function onEscape(root, act) {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || isComposed(event)) return;
    if (!root.hidden && !document.querySelector("dialog[open]")) act();
  });
}

/**
 * Submit a textarea's form on Enter, except with Shift or while text is being composed. On a touch
 * screen Enter starts a new line, because its keyboard has no other key for that.
 */
export function submitsOnEnter(area) {
  const hint = document.getElementById(area.getAttribute("aria-describedby"));
  if (TOUCH.matches) {
    area.enterKeyHint = "enter";
    if (hint) hint.textContent = t("Enter starts a new line, Ctrl+Enter sends.");
  }
  area.addEventListener("keydown", (event) => {
    const isLine = event.shiftKey || (TOUCH.matches && !event.ctrlKey && !event.metaKey);
    if (event.key !== "Enter" || isLine || isComposed(event)) return;
    event.preventDefault();
    area.form.requestSubmit();
  });
}
