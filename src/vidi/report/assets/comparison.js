// Runs against one another: a sentence, the interval of the difference, and where they disagree.
import { el, svg, drawn, definitions } from "./dom.js";
import { count, decimal, percent, whole } from "./format.js";
import { table } from "./table.js";
import { start } from "./start.js";

const LEVEL = { better: "fine", worse: "bad", "cannot tell": "watch" };

function points(share) {
  return `${share >= 0 ? "+" : "\u2212"}${Math.abs(100 * share).toFixed(2)}`;
}

function interval(pair) {
  const box = el("div", { class: "scale" });
  const [low, high] = pair.interval;
  const reach = 1.15 * Math.max(Math.abs(low), Math.abs(high), 0.001);
  drawn(box, (width) => {
    const x = (value) => 1 + ((value + reach) / (2 * reach)) * (width - 2);
    box.replaceChildren(svg("svg", { width, height: 58, viewBox: `0 0 ${width} 58`, role: "img",
      "aria-label": `difference ${points(pair.difference)} points, 95% interval ${points(low)} to ${points(high)}` },
      svg("rect", { class: "track", x: 1, y: 14, width: width - 2, height: 10, rx: 5 }),
      svg("rect", { class: "band", x: x(low), y: 8, width: Math.max(2, x(high) - x(low)), height: 22, rx: 3 }),
      svg("line", { class: "here", x1: x(pair.difference), x2: x(pair.difference), y1: 4, y2: 34 }),
      svg("line", { class: "tick", x1: x(0), x2: x(0), y1: 4, y2: 38 }),
      svg("text", { x: x(0), y: 54, "text-anchor": "middle" }, "no difference")));
  });
  return box;
}

function renderSummary(root, view) {
  root.append(el("p", { class: "eyebrow" }, "Comparison"), el("h1", {}, `Against ${view.first}`),
    el("p", { class: "sure" }, `${count(view.n, `${view.split} image`)}, each asked of every run.`));
}

function renderPairs(root, view) {
  root.append(...view.pairs.map((pair) => el("article", { class: "found" },
    el("h3", { class: `finding ${LEVEL[pair.verdict]}` }, `${pair.run}: ${pair.verdict}`),
    el("p", {}, pair.sentence), interval(pair),
    definitions([
      ["Accuracy", `${percent(pair.accuracy_b)} against ${percent(pair.accuracy_a)}`],
      ["Only this one right", whole(pair.only_b)], [`Only ${view.first} right`, whole(pair.only_a)],
      ["Both right", whole(pair.both_right)], ["Both wrong", whole(pair.both_wrong)],
      ["Chance of this by luck (p)", decimal(pair.p_value, 3)],
      ["Smallest difference these images tell", `${(100 * pair.smallest).toFixed(1)} points`],
    ]),
    table({
      caption: "By class", noun: ["class", "classes"], rows: pair.classes, pageSize: 20, sort: [3, "ascending"],
      filter: (row) => row.name,
      columns: [
        { title: "Class", value: (row) => row.name, cell: (row) => row.name },
        { title: "Images", numeric: true, value: (row) => row.n, cell: (row) => whole(row.n) },
        { title: "Before", numeric: true, value: (row) => row.a, cell: (row) => percent(row.a) },
        { title: "Points", numeric: true, value: (row) => row.b - row.a, cell: (row) => points(row.b - row.a) },
      ],
    }))));
}

start({ summary: renderSummary, pairs: renderPairs });
