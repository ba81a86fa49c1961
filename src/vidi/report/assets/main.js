// Read the JSON of each part and draw it.
import { el, readView } from "./dom.js";
import { startTheme } from "./theme.js";
import { renderSummary } from "./summary.js";
import { renderMistakes } from "./pictures.js";
import { renderConfusion } from "./confusion.js";
import { renderClasses } from "./classes.js";
import { renderTrust } from "./trust.js";
import { renderCurves } from "./curves.js";
import { renderPlan } from "./plan.js";
import { renderData } from "./data.js";
import { renderEnvironment } from "./environment.js";

const RENDERERS = {
  summary: renderSummary, mistakes: renderMistakes, confusion: renderConfusion, classes: renderClasses,
  trust: renderTrust, curves: renderCurves, plan: renderPlan, data: renderData, environment: renderEnvironment,
};

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

startTheme();
const mistakes = readView("mistakes");
for (const [name, render] of Object.entries(RENDERERS)) {
  const view = name === "mistakes" ? mistakes : readView(name);
  if (view === null) continue;
  const root = document.querySelector(`#${name} > .view`);
  try {
    render(root, view, mistakes);
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
