// Shows the newest state of a run on its page of the admin until it has ended. The server answers 304 while nothing has changed, and only
// the parts that differ are replaced, so that pictures stay and what a person reads, marks or types in a part stays in place.
"use strict";

(() => {
  const PAUSE_MS = 3000;
  const PARTS = ".object-tools, fieldset.aligned .form-row, .inline-group, #events";
  const content = () => document.getElementById("content");
  const goesOn = () => document.querySelector("[data-goes-on]");
  let timer = 0;

  // The token of a form is another one in each answer.
  const bare = (part) => part.outerHTML.replace(/value="[A-Za-z0-9]{64}"/g, "").replace(/ open=""/g, "");

  function isInUse(part) {
    const marked = getSelection();
    return part.contains(document.activeElement) || (!marked.isCollapsed && part.contains(marked.anchorNode));
  }

  function replace(part, newer) {
    if (bare(part) === bare(newer)) return true;
    if (isInUse(part)) return false;
    const open = [...part.querySelectorAll("details")].map((one) => one.open);
    newer.querySelectorAll("details").forEach((one, place) => { one.open = open[place] ?? one.open; });
    part.replaceWith(newer);
    return true;
  }

  // Whether everything that is shown is as new as the answer.
  function show(newer) {
    const [parts, others] = [content(), newer].map((one) => [...one.querySelectorAll(PARTS)]);
    if (parts.length !== others.length) return replace(content(), newer);
    const ended = !newer.querySelector("[data-goes-on]");
    const isNew = parts.map((part, place) => replace(part, others[place])).every(Boolean);
    if (ended && isNew) goesOn().remove();
    return isNew;
  }

  async function renew() {
    const state = goesOn();
    if (document.hidden || !state) return;
    try {
      const headers = { Accept: "text/html", "If-None-Match": state.dataset.goesOn };
      const answer = await fetch(location.href, { cache: "no-store", headers });
      if (answer.status === 200) {
        const newer = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("content");
        const etag = newer.querySelector("[data-goes-on]")?.dataset.goesOn;
        if (show(newer) && etag && goesOn()) goesOn().dataset.goesOn = etag;
      }
    } catch { /* a server that is started again answers later */ }
    later();
  }

  function later() {
    clearTimeout(timer);
    if (goesOn() && !document.hidden) timer = setTimeout(renew, PAUSE_MS);
  }

  document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else renew(); });
  later();
})();
