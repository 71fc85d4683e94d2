/** What outlives a reload of this tab, and nothing longer. */

/** The value kept under `name`, or `otherwise`. */
export function kept(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(`decant.${name}`)) ?? otherwise;
  } catch {
    return otherwise; // no storage in this browser, or another page's text under our name
  }
}

/** Keep `value`, or forget it when it is null. A browser that refuses loses only the keeping. */
export function keep(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(`decant.${name}`);
    else sessionStorage.setItem(`decant.${name}`, JSON.stringify(value));
  } catch {
    // full, or switched off
  }
}
