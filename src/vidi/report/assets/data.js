// What was found, how it was split, and what was left out.
import { el, definitions } from "./dom.js";
import { count, percent, whole } from "./format.js";
import { table } from "./table.js";

export const LEVELS = { error: "bad", warning: "watch", note: "fine" };
const SPLIT_NAMES = { train: "training", validation: "validation", test: "test" };

export function renderData(root, view) {
  const totals = Object.fromEntries(view.splits.map((split) => [split, view.counts[split].reduce((a, b) => a + b, 0)]));
  const all = Object.values(totals).reduce((a, b) => a + b, 0);
  root.append(el("div", { class: "split-bar", role: "img", "aria-label": view.splits.map((split) => `${SPLIT_NAMES[split]} ${totals[split]}`).join(", ") },
    view.splits.map((split) => el("div", { class: `part ${split}`, css: { "flex-grow": totals[split] } },
      el("span", {}, SPLIT_NAMES[split]), el("strong", {}, whole(totals[split]))))));
  const median = (quartiles) => (quartiles[0] === quartiles[2] ? `${quartiles[1]}` : `${quartiles[1]} (${quartiles[0]} to ${quartiles[2]})`);
  const left = (counts, none) => (Object.keys(counts).length
    ? Object.entries(counts).map(([reason, n]) => `${whole(n)} ${reason}`).join(", ") : none);
  root.append(definitions([
    ["Images", whole(all), el("span", { class: "hint" }, count(view.classes.length, "class", "classes"))],
    ["Split", view.split_rule],
    ["Width, height", `${median(view.width_px)} \u00d7 ${median(view.height_px)} px`, el("span", { class: "hint" }, view.grey ? "without colour" : "in colour")],
    ["Could not be used", left(view.quarantined, "none")],
    ["Left aside", left(view.ignored, "none")],
    ...(view.neighbour_agreement === null ? [] : [["Nearest image has the same class", percent(view.neighbour_agreement), el("span", { class: "hint" }, "how far plain pixels get")]]),
    ["Fingerprint", el("code", {}, view.fingerprint)],
  ]));
  if (view.found !== null) {
    root.append(el("h3", { class: "apart" }, "What the images told before training"),
      view.found.length === 0 ? el("p", { class: "hint" }, "Nothing: no image is there twice, none is blank.")
        : el("ul", { class: "told" }, view.found.map((each) => el("li", { class: `finding ${LEVELS[each.severity]}` },
          each.message, each.example.length ? el("span", { class: "hint" }, ` e.g. ${each.example.join(" = ")}`) : null))));
  }
  const rows = view.classes.map((name, label) => ({ name, n: view.splits.map((split) => view.counts[split][label]) }));
  const most = Math.max(1, ...rows.map((row) => row.n.reduce((a, b) => a + b, 0)));
  root.append(table({
    caption: "Images of each class", noun: ["class", "classes"], rows, pageSize: 20, sort: [1, "descending"], filter: (row) => row.name,
    columns: [
      { title: "Class", value: (row) => row.name, cell: (row) => row.name },
      { title: "Share of images", value: (row) => row.n.reduce((a, b) => a + b, 0),
        cell: (row) => el("span", { class: "stack", "aria-hidden": "true" }, row.n.map((n, i) =>
          el("span", { class: `part ${view.splits[i]}`, css: { "--share": n / most } }))) },
      ...view.splits.map((split, i) => ({ title: SPLIT_NAMES[split], numeric: true, value: (row) => row.n[i], cell: (row) => whole(row.n[i]) })),
    ],
  }));
}
