/** The views as tabs: arrow keys move between them, the address remembers which. */

/**
 * @param {Element} list the tablist
 * @param {function(string): void} shown receives the id of the view that is shown
 */
export function useTabs(list, shown) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const other of tabs) {
      const isChosen = other === tab;
      other.setAttribute("aria-selected", String(isChosen));
      other.tabIndex = isChosen ? 0 : -1;
      panelOf(other).hidden = !isChosen;
    }
    shown(panelOf(tab).id);
  };
  const choose = (tab) => {
    history.replaceState(null, "", `#${panelOf(tab).id}`);
    select(tab);
  };
  list.addEventListener("click", ({ target }) => {
    const tab = target.closest("[role=tab]");
    if (tab) choose(tab);
  });
  list.addEventListener("keydown", (event) => {
    const next = tabAfter(tabs, event);
    if (!next) return;
    event.preventDefault();
    choose(next);
    next.focus();
  });
  const named = () => tabs.find((tab) => `#${panelOf(tab).id}` === location.hash);
  window.addEventListener("hashchange", () => { if (named()) select(named()); });
  select(named() ?? tabs[0]);
}

function panelOf(tab) {
  return document.getElementById(tab.getAttribute("aria-controls"));
}

function tabAfter(tabs, { key }) {
  const at = tabs.indexOf(document.activeElement);
  const moves = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 };
  return key in moves ? tabs[moves[key] % tabs.length] : undefined;
}
