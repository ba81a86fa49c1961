// The first screen: how good, how sure, what is wrong, what to do next.
import { el } from "./dom.js";
import { openPicture } from "./pictures.js";
import { count, percent, whole } from "./format.js";
import { figure, finding, scale, step } from "./first.js";

/** The first mistakes, small: a picture says more than the sentence above it. */
function glimpse(mistakes) {
  const items = (mistakes?.items ?? []).slice(0, 5);
  if (items.length < 3) return null;
  return el("div", { class: "glimpse" },
    el("p", { class: "hint" }, "The most confident mistakes:"),
    el("div", {}, items.map((item) => el("button", { type: "button", class: "tile",
      title: `${mistakes.classes[item.label]} taken for ${mistakes.classes[item.predicted]}`,
      on: { click: () => openPicture(item, mistakes.classes, mistakes.items) } },
    el("img", { src: item.picture, alt: `${mistakes.classes[item.label]} taken for ${mistakes.classes[item.predicted]}` })))));
}

export function renderSummary(root, view, mistakes) {
  const judged = view.judged;
  const parameters = view.parameters ? ` \u00b7 ${whole(view.parameters)} parameters` : "";
  root.append(el("p", { class: "eyebrow" }, view.run),
    el("h1", {}, view.dataset, el("span", { class: "by" }, `${view.model}${parameters}`)));
  const good = judged === null
    ? el("div", { class: "good" }, el("p", { class: "sure" }, "No split of this run was judged yet."))
    : el("div", { class: "good" },
      el("p", { class: "big" }, percent(judged.accuracy),
        el("span", { class: "of" }, `${whole(judged.n_right)} of ${count(judged.n, `${judged.split} image`)} right`)),
      scale(judged),
      el("p", { class: "sure" }, judged.sentence),
      glimpse(mistakes));
  root.append(el("div", { class: "first" }, good,
    el("div", { class: "wrong" }, el("h2", {}, "What is wrong"),
      el("ul", {}, view.findings.map(finding))),
    el("div", { class: "next" }, el("h2", {}, "What to do next"),
      el("ol", {}, view.steps.map(step)))));
  if (judged !== null) root.append(el("dl", { class: "figures" }, judged.figures.map(figure)));
}
