/** Where the log of messages is scrolled to: a reader at its end stays there while it grows. */

const NEAR_END = 60; // pixels; a reader who has scrolled further up stays there

export class LogScroll {
  /**
   * @param {Element} log
   * @param {Element} list what grows in it
   */
  constructor(log, list) {
    this.log = log;
    this.followed = null; // what stands for the change that is followed now
    new ResizeObserver(() => { if (this.followed) this.toEnd(); }).observe(list);
  }

  /** The element that scrolls: the log, or in a low window the whole page. */
  get scroller() {
    return getComputedStyle(this.log).overflowY === "visible" ? document.scrollingElement : this.log;
  }

  get isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  /** Call `change`, which alters the log's height; a log that was at its end stays there. */
  following(change) {
    const { isAtEnd } = this;
    change();
    if (isAtEnd) this.toEnd();
  }

  /** The same for a change just before a frame: once the browser has laid it out, the log is scrolled. */
  followingFrame(change) {
    const now = this.isAtEnd ? {} : null;
    this.followed = now;
    change();
    requestAnimationFrame(() => { if (this.followed === now) this.followed = null; });
  }

  toEnd() {
    const { scroller } = this;
    scroller.scrollTop = scroller.scrollHeight;
  }
}
