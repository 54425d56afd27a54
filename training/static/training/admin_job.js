// Shows the newest state of a run on its page of the admin until it has ended. What a person reads or marks there stays in place.
"use strict";

(() => {
  const PAUSE_MS = 3000;
  const goesOn = (page) => page.querySelector("[data-goes-on]") !== null;

  // Nothing is replaced under a person's hands: while a control in it has the focus, or text in it is marked.
  function isInUse(content) {
    const marked = getSelection();
    return content.contains(document.activeElement) || (!marked.isCollapsed && content.contains(marked.anchorNode));
  }

  async function renew() {
    const content = document.getElementById("content");
    if (!document.hidden && !isInUse(content)) {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok) {
        const newer = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("content");
        const open = [...content.querySelectorAll("details")].map((one) => one.open);
        newer.querySelectorAll("details").forEach((one, place) => { one.open = open[place] ?? one.open; });
        if (!isInUse(content)) content.replaceWith(newer);
      }
    }
    if (goesOn(document)) setTimeout(tryToRenew, PAUSE_MS);
  }

  // A server that is started again answers later.
  function tryToRenew() {
    renew().catch(() => setTimeout(tryToRenew, PAUSE_MS));
  }

  if (goesOn(document)) setTimeout(tryToRenew, PAUSE_MS);
})();
