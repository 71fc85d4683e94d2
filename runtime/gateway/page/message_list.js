/** The messages of the open conversation on the page: the last ones first, earlier ones as one scrolls up. */

import { part } from "./dom.js";
import { LogScroll } from "./log_scroll.js";
import { MessageView } from "./message.js";
import { Thread } from "./thread.js";

const AT_ONCE = 60; // messages that are put on the page

export class MessageList {
  /**
   * @param {Element} root
   * @param {{actions: Object, isWritten: function(Object): boolean}} options `actions` are those of a
   *   MessageView but `following`; `isWritten` tells whether an answer is still being written
   */
  constructor(root, { actions, isWritten }) {
    this.log = part(root, "log");
    this.list = part(root, "messages");
    this.earlier = part(root, "earlier");
    this.scroll = new LogScroll(this.log, this.list);
    this.actions = { ...actions, following: (change) => this.scroll.followingFrame(change) };
    this.isWritten = isWritten;
    this.thread = new Thread();
    this.views = []; // those on the page, in order
    this.first = 0; // the place of the first one in the path
    this.earlier.addEventListener("click", () => this.showEarlier());
    this.watch = new IntersectionObserver((seen) => { if (seen.at(-1).isIntersecting) this.showEarlier(); }, { root: this.log, rootMargin: "600px" });
    this.watch.observe(this.earlier);
  }

  /** Put the messages of another conversation on the page. */
  show(thread) {
    this.thread = thread;
    this.views.splice(0).forEach((view) => this.take(view));
    this.first = Math.max(0, thread.path.length - AT_ONCE);
    this.sync();
  }

  viewOf(message) {
    return this.views.findLast((view) => view.message === message);
  }

  /** Make the views on the page those of the path, from the first one shown on. */
  sync() {
    const path = this.thread.path.slice(this.first);
    let same = 0;
    while (same < this.views.length && this.views[same].message === path[same]) same += 1;
    this.views.splice(same).forEach((view) => this.take(view));
    for (const message of path.slice(same)) {
      const view = this.viewFor(message);
      this.views.push(view);
      this.list.append(view.element);
    }
    this.views.forEach((view) => view.showVersions(this.thread.siblings(view.message)));
    this.earlier.hidden = this.first === 0;
  }

  viewFor(message) {
    const view = new MessageView(message, this.actions);
    if (this.isWritten(message)) view.answer.open();
    return view;
  }

  /** Take a view off the page. */
  take(view) {
    view.answer?.leave();
    view.element.remove();
  }

  /** Put earlier messages on the page, above those that are there; what is read stays in place. */
  showEarlier() {
    const from = Math.max(0, this.first - AT_ONCE);
    const views = this.thread.path.slice(from, this.first).map((message) => this.viewFor(message));
    if (!views.length) return;
    const anchor = this.list.firstElementChild;
    const before = anchor.getBoundingClientRect().top;
    views.forEach((view) => view.showVersions(this.thread.siblings(view.message)));
    this.list.prepend(...views.map(({ element }) => element));
    this.views.unshift(...views);
    this.first = from;
    if (document.activeElement === this.earlier) this.log.focus({ preventScroll: true }); // the button leaves the view
    this.earlier.hidden = from === 0;
    this.scroll.scroller.scrollTop += anchor.getBoundingClientRect().top - before;
    this.watch.unobserve(this.earlier); // else the browser may not tell when it left the view and came back within a frame
    this.watch.observe(this.earlier);
  }

  /** Offer buttons below the last message, and below no other one. */
  offer(buttons) {
    this.views.slice(-3).forEach((view) => view.offer([])); // no earlier message has any
    this.views.at(-1)?.offer(buttons);
  }
}
