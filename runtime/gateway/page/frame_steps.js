/** Work that takes longer than a frame, in steps. */

const SELECTED_MS = 500; // how long a step waits that would move what the reader has selected

/**
 * Call `step` in frame after frame, until it returns false. While `isHeld()`, it waits.
 * @param {function(): boolean} step
 * @param {function(): boolean} [isHeld]
 */
export function inFrames(step, isHeld = () => false) {
  const next = () => requestAnimationFrame(() => {
    if (isHeld()) setTimeout(next, SELECTED_MS);
    else if (step()) next();
  });
  next();
}
