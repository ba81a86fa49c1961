// An ablation: what each change does to accuracy, as a forest of intervals and as a table.
import { el, svg, drawn, definitions } from "./dom.js";
import { count, decimal, percent, whole } from "./format.js";
import { table } from "./table.js";

const VERDICT_LEVEL = { helps: "fine", hurts: "bad" };

export function inPoints(share, digits = 1) {
  if (share === null || share === undefined) return "\u2013";
  const size = Math.abs(100 * share).toFixed(digits);
  return `${Number(size) === 0 ? "\u00b1" : share > 0 ? "+" : "\u2212"}${size}`;
}

function forest(row, reach) {
  const box = el("div", { class: "forest" });
  drawn(box, (width) => {
    const x = (value) => 1 + ((Math.max(-reach, Math.min(reach, value)) + reach) / (2 * reach)) * (width - 2);
    const [low, high] = row.interval;
    box.replaceChildren(svg("svg", { width, height: 26, viewBox: `0 0 ${width} 26`, role: "img",
      "aria-label": `${inPoints(row.difference)} points, 95% interval ${inPoints(low)} to ${inPoints(high)}` },
      svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: 26 }),
      svg("line", { class: "wide", x1: x(row.wide[0]), x2: x(row.wide[1]), y1: 13, y2: 13 }),
      svg("rect", { class: `span ${VERDICT_LEVEL[row.verdict] ?? "unsure"}`, x: x(low), y: 9, width: Math.max(2, x(high) - x(low)), height: 8, rx: 4 }),
      row.differences.map((each) => svg("circle", { class: "seed", cx: x(each), cy: 13, r: 2 })),
      svg("line", { class: "here", x1: x(row.difference), x2: x(row.difference), y1: 5, y2: 21 })));
  });
  return box;
}

export function renderEffects(root, view) {
  const judged = view.rows.filter((row) => row.difference !== null);
  // The widest intervals may leave the picture: the others would be dots beside them.
  const ends = judged.flatMap((row) => row.interval.map(Math.abs)).sort((a, b) => a - b);
  const reach = Math.max(0.005, 1.1 * (ends[Math.floor(ends.length * 0.93)] ?? 0.01), ...judged.map((row) => 1.05 * Math.min(0.25, Math.abs(row.difference))));
  const factors = [...new Set(view.rows.map((row) => row.factor))];
  root.append(el("div", { class: "effects" },
    el("div", { class: "effect-scale", "aria-hidden": "true" }, el("span", {}, `${inPoints(-reach, 0)} points`), el("span", {}, "as the base"), el("span", {}, `${inPoints(reach, 0)} points`)),
    factors.map((factor) => el("div", { class: "factor" }, el("h3", {}, factor),
      view.rows.filter((row) => row.factor === factor).map((row) => el("div", { class: "effect" },
        el("span", { class: "name" }, row.level),
        row.difference === null
          ? el("span", { class: "hint" }, row.failed ? `failed: ${row.reason}` : row.seeds ? "one seed only" : "not tried: no time was left")
          : forest(row, reach),
        el("span", { class: "number" }, row.difference === null ? "" : inPoints(row.difference)),
        el("span", { class: `said ${VERDICT_LEVEL[row.verdict] ?? "unsure"}` }, row.difference === null ? "" : row.verdict)))))));
  root.append(el("p", { class: "hint" }, `Bars: 95% for each alone; thin lines: 95% for all ${whole(view.judged)} at once; dots: the seeds. Of so many, about ${decimal(view.by_chance, 1)} would leave zero by chance alone, so a verdict needs p < ${view.alpha} after Holm's adjustment.`),
    definitions([
      ["Seeds", whole(view.seeds), el("span", { class: "hint" }, "the same for every change")],
      ...(view.n === null ? [] : [["Judged on", count(view.n, "validation image")]]),
      ...Object.entries(view.base),
    ]),
    el("h3", { class: "apart" }, "In numbers"),
    table({
      caption: "Effects", noun: ["change", "changes"], rows: view.rows, pageSize: 60, sort: [2, "descending"],
      filter: (row) => `${row.factor} ${row.level}`,
      columns: [
        { title: "Factor", value: (row) => row.factor, cell: (row) => row.factor },
        { title: "Change", value: (row) => row.level, cell: (row) => row.level },
        { title: "Points", numeric: true, value: (row) => row.difference, cell: (row) => inPoints(row.difference, 2) },
        { title: "95%", numeric: true, value: (row) => row.interval && row.interval[0], cell: (row) => (row.interval ? `${inPoints(row.interval[0], 2)} to ${inPoints(row.interval[1], 2)}` : "") },
        { title: "Accuracy", numeric: true, value: (row) => row.accuracy, cell: (row) => percent(row.accuracy) },
        { title: "p", numeric: true, hint: "for this one alone", value: (row) => row.p_value, cell: (row) => decimal(row.p_value, 3) },
        { title: "p, Holm", numeric: true, hint: "adjusted for all of them", value: (row) => row.p_adjusted, cell: (row) => decimal(row.p_adjusted, 3) },
        { title: "Log loss", numeric: true, value: (row) => row.log_loss, cell: (row) => (row.log_loss === null ? "\u2013" : `${row.log_loss > 0 ? "+" : "\u2212"}${Math.abs(row.log_loss).toFixed(3)}`) },
        { title: "Time", numeric: true, hint: "as a multiple of the base; as steady as the machine was", value: (row) => row.seconds, cell: (row) => (row.seconds === null ? "\u2013" : `${row.seconds.toFixed(2)}\u00d7`) },
        { title: "Seeds", numeric: true, value: (row) => row.seeds, cell: (row) => whole(row.seeds) },
        { title: "Settings", value: (row) => Object.keys(row.settings).join(), cell: (row) => Object.entries(row.settings).map(([name, value]) => `${name} = ${value}`).join(", ") },
      ],
    }));
}
