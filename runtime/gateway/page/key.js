/** The server's key: from the address, from this tab's memory, or typed. */

import { part } from "./dom.js";
import { keep, kept } from "./kept.js";

const IN_FRAGMENT = /^#key=(.+)$/;
let asking = null;

/** What requests carry; empty without a key. */
export function keyHeaders() {
  const key = kept("key", "");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Take `#key=…` out of the address bar and its history; returns whether there was one. */
export function takeKeyFromAddress() {
  const found = IN_FRAGMENT.exec(location.hash);
  if (!found) return false;
  history.replaceState(null, "", location.pathname + location.search);
  keep("key", decoded(found[1]));
  return true;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * Ask for the key; requests that are refused at the same time share one dialog.
 * @param {string} why the server's message
 * @returns {Promise<boolean>} whether one was given
 */
export function askForKey(why) {
  asking ??= asked(why).finally(() => { asking = null; });
  return asking;
}

function asked(why) {
  const dialog = document.getElementById("key-dialog");
  const field = dialog.querySelector("input");
  part(dialog, "why").textContent = why;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    part(dialog, "form").onsubmit = () => { dialog.returnValue = "given"; };
    part(dialog, "cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => {
      const key = field.value.trim();
      field.value = "";
      const given = dialog.returnValue === "given" && key !== "";
      if (given) keep("key", key);
      resolve(given);
    }, { once: true });
  });
}
