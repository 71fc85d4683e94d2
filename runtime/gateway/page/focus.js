/** Where the focus goes when the page moves it: a field in which nobody has tapped opens no keyboard. */

/** Whether the reader's pointer is a finger: then a keyboard, if there is one, covers half of the page. */
export const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");

/** Focus a field, or on a touch screen `otherwise`, which opens no keyboard. */
export function focusField(field, otherwise) {
  if (TOUCH.matches) otherwise.focus({ preventScroll: true });
  else field.focus();
}
