// Renews the overview while somebody looks at it. Everything works without it.
"use strict";
const live = document.getElementById("live");
if (live) {
  const renew = async () => {
    // Not under somebody's hands: what has the focus stays.
    if (document.hidden || live.contains(document.activeElement) || String(getSelection())) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "error" });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
      if (fresh) live.replaceChildren(...fresh.childNodes);
    } catch {
      // The gateway may restart; the next try finds it again.
    }
  };
  setInterval(renew, Number(live.dataset.every) * 1000);
}
