// Accuracy against each setting, as small charts side by side.
import { el, svg } from "./dom.js";
import { chart, ticks } from "./chart.js";
import { percent, words } from "./format.js";
import { cut, shownValue } from "./parallel.js";

function xOf(axis) {
  const label = axis.scale === "log" ? "logarithmic" : "";
  if (axis.scale === "choice") {
    const last = axis.choices.length - 1;
    const stride = Math.ceil(axis.choices.length / 4);
    return { domain: [-0.5, last + 0.5], label, ticks: axis.choices.map((_, k) => k).filter((k) => k % stride === 0), format: (k) => cut(axis.choices[k], 11), at: (value) => value };
  }
  if (axis.scale === "log") {
    const [low, high] = [Math.log10(axis.low), Math.log10(axis.high)];
    const decades = [];
    for (let power = Math.ceil(low - 1e-9); power <= high + 1e-9; power += 1) decades.push(power);
    return { domain: [low, high], label, ticks: decades.length > 1 ? decades : ticks(low, high, 3),
      format: (power) => shownValue(axis, 10 ** power), at: Math.log10 };
  }
  return { domain: [axis.low, axis.high], label, ticks: ticks(axis.low, axis.high, 3), format: (value) => shownValue(axis, value), at: (value) => value };
}

export function renderSlices(root, view, trials) {
  const rows = trials.rows.filter((row) => row.score !== null);
  const scores = rows.map((row) => row.score).sort((a, b) => a - b);
  if (scores.length === 0) {
    root.append(el("p", { class: "note" }, "Nothing was judged yet."));
    return;
  }
  const low = scores[Math.floor(scores.length * 0.05)];
  const reach = Math.max(0.01, scores.at(-1) - low);
  const domain = [Math.max(0, low - 0.08 * reach), scores.at(-1) + 0.05 * reach];
  root.append(el("div", { class: "slices" }, view.axes.map((axis, i) => {
    const x = xOf(axis);
    return chart({
      title: words(axis.name), height: 210, x,
      y: { domain, label: "", format: (value) => percent(value, reach < 0.05 ? 1 : 0) },
      paint: (layer, toX, toY, size) => {
        const shown = rows.filter((row) => row.values[i] !== null);
        layer.append(...shown.map((row, k) => svg("circle", {
          // Choices would lie on top of one another: each stands a little aside, always in the same place.
          cx: toX(x.at(row.values[i]) + (axis.scale === "choice" ? (((k * 7) % 11) / 11 - 0.45) * 0.5 : 0)),
          cy: Math.min(size.bottom, toY(row.score)), r: row.number === trials.best ? 5 : 3,
          class: row.number === trials.best ? "picked" : "mark-dot" },
        svg("title", {}, `Trial ${row.number}: ${axis.name} = ${shownValue(axis, row.values[i])}, ${percent(row.score)}`))));
      },
    });
  })));
  root.append(el("p", { class: "hint" }, `Large: the best trial. Accuracy after ${trials.compared}.`));
}
