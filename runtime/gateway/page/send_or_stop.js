/** The buttons Send and Stop, of which one is shown. */

import { part } from "./dom.js";
import { focusField } from "./focus.js";

export class SendOrStop {
  /**
   * @param {Element} root
   * @param {HTMLTextAreaElement} area has the focus after a button that disappears
   */
  constructor(root, area) {
    this.area = area;
    this.send = part(root, "send");
    this.stop = part(root, "stop");
  }

  /** Show the button that can be used now. */
  show(isRunning) {
    const focused = document.activeElement;
    this.send.hidden = isRunning;
    this.stop.hidden = !isRunning;
    if (isRunning && focused === this.send) focusField(this.area, this.stop);
    if (!isRunning && focused === this.stop) focusField(this.area, this.send);
  }
}
