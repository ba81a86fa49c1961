// Shares of the variance that settings account for, with how sure that is.
import { el, svg, drawn } from "./dom.js";
import { count, percent, words } from "./format.js";

function bar(each) {
  const box = el("div", { class: "share-bar" });
  drawn(box, (width) => {
    const x = (share) => 1 + Math.min(1, Math.max(0, share)) * (width - 2);
    box.replaceChildren(svg("svg", { width, height: 22, viewBox: `0 0 ${width} 22`, role: "img",
      "aria-label": `${percent(each.share, 0)}, ${percent(each.low, 0)} to ${percent(each.high, 0)}` },
      svg("rect", { class: "track", x: 1, y: 7, width: width - 2, height: 8, rx: 4 }),
      svg("rect", { class: "fill", x: 1, y: 7, width: Math.max(1, x(each.share) - 1), height: 8, rx: 4 }),
      svg("line", { class: "whisker", x1: x(each.low), x2: x(each.high), y1: 11, y2: 11 }),
      [each.low, each.high].map((end) => svg("line", { class: "whisker", x1: x(end), x2: x(end), y1: 5, y2: 17 }))));
  });
  return box;
}

export function renderImportance(root, view) {
  if (view.shares.length === 0) {
    root.append(el("p", { class: "note" }, view.trials < view.least
      ? `${count(view.trials, "trial")} can be compared; below ${view.least} a look at them says more.`
      : "The trials are all alike, or have no setting in common."));
    return;
  }
  const poor = view.predicted < 0.2;
  root.append(el("p", { class: "verdict" },
    poor ? "These shares say little: from the settings alone, accuracy could hardly be foretold."
      : `From the settings alone, a forest foretells ${percent(view.predicted, 0)} of the variance of trials that it did not see.`),
  el("ul", { class: "shares" }, view.shares.map((each) => el("li", {},
    el("span", { class: "name", title: each.name }, words(each.name)), bar(each),
    el("span", { class: "number" }, percent(each.share, 0)),
    el("span", { class: "hint" }, `${percent(each.low, 0)} to ${percent(each.high, 0)}`)))),
  el("p", { class: "hint" },
    `Functional ANOVA of ${count(view.trials, "trial")} judged after ${view.compared}; what is missing to 100% is due to settings together. Whiskers: the range over ${view.resamples} new draws of the trials.`));
  if (view.apart.length) root.append(el("p", { class: "hint" }, `Not in every trial, so not compared: ${view.apart.join(", ")}.`));
}
