// What every page does: draw its parts, follow the reader, close the dialog.
import { el, readView } from "./dom.js";
import { startTheme } from "./theme.js";

function followReading() {
  const links = new Map([...document.querySelectorAll("#nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const [name, link] of links) {
        if (name === entry.target.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("main > section")) watcher.observe(section);
}

/** renderers: { part: draw(root, view, shared) }; what all parts need is read once and shared. */
export function start(renderers, shared = null) {
  startTheme();
  for (const [name, render] of Object.entries(renderers)) {
    const view = readView(name);
    if (view === null) continue;
    const root = document.querySelector(`#${name} > .view`);
    try {
      render(root, view, shared);
    } catch (error) {
      // One part that cannot be drawn must not hide the others.
      root.append(el("p", { class: "note" }, `This part could not be drawn: ${error.message}`));
      console.error(error);
    }
  }
  const dialog = document.getElementById("dialog");
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  followReading();
  document.documentElement.dataset.ready = "true";
}
