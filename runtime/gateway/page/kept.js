/** Values that survive a reload of this tab, until it is closed. */

/** The value kept under `name`, or `otherwise`. */
export function kept(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(`decant.${name}`)) ?? otherwise;
  } catch {
    return otherwise; // no storage in this browser, or another page's text under our name
  }
}

/** Keep `value`, or remove it when it is null. Without storage, the page works on. */
export function keep(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(`decant.${name}`);
    else sessionStorage.setItem(`decant.${name}`, JSON.stringify(value));
  } catch {
    // full, or switched off
  }
}
