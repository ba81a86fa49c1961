// Parallel coordinates: every trial a line over one axis for each setting, and one for accuracy.
import { el, svg, drawn } from "./dom.js";
import { percent, words } from "./format.js";

const TOP = 34;
const AXIS_HEIGHT = 250;
const LEAST_WIDTH = 96;
const SHORTENED = 14;

/** 0.00123 -> "0.0012"; choices by their name. */
export function shownValue(axis, value) {
  if (axis.scale === "choice") return axis.choices[value];
  if (Math.abs(value) >= 10) return String(Number(value.toPrecision(4)));
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(0) : String(Number(value.toPrecision(2)));
}

/** Where a value lies between the ends of its axis, 0 to 1. */
export function placeOn(axis, value) {
  if (axis.scale === "choice") return axis.choices.length > 1 ? value / (axis.choices.length - 1) : 0.5;
  const turn = axis.scale === "log" ? Math.log : (each) => each;
  const [low, high] = [turn(axis.low), turn(axis.high)];
  return high > low ? (turn(value) - low) / (high - low) : 0.5;
}

export function cut(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}\u2026` : text;
}

export function renderParallel(root, view, trials) {
  const rows = trials.rows.filter((row) => row.score !== null).sort((a, b) => a.score - b.score);
  if (rows.length === 0) {
    root.append(el("p", { class: "note" }, "Nothing was judged yet."));
    return;
  }
  const axes = [...view.axes, null];
  const scores = rows.map((row) => row.score);
  const ends = [Math.min(...scores), Math.max(...scores)];
  const best = new Set(rows.slice(-Math.max(1, Math.round(rows.length / 10))));
  const box = el("div", { class: "chart parallel" });
  const outer = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Settings of all trials as lines" }, box);
  root.append(outer);
  drawn(outer, (visible) => {
    const width = Math.max(visible, axes.length * LEAST_WIDTH);
    const height = TOP + AXIS_HEIGHT + 30;
    const x = (index) => 44 + (index * (width - 88)) / Math.max(1, axes.length - 1);
    const y = (share) => TOP + 12 + (1 - share) * (AXIS_HEIGHT - 24);
    const lines = rows.map((row) => {
      const points = axes.map((axis, i) => {
        if (axis === null) return [x(i), y(ends[1] > ends[0] ? (row.score - ends[0]) / (ends[1] - ends[0]) : 0.5)];
        return row.values[i] === null ? null : [x(i), y(placeOn(axis, row.values[i]))];
      });
      let pen = "M";
      const path = points.map((point) => {
        if (point === null) { pen = "M"; return ""; }
        const part = `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
        pen = "L";
        return part;
      }).join("");
      return svg("path", { d: path, fill: "none", class: best.has(row) ? "curve chosen" : "curve" });
    });
    const drawnAxes = axes.map((axis, i) => {
      const name = axis === null ? "Accuracy" : words(axis.name);
      const labels = axis === null ? [[1, percent(ends[1])], [0, percent(ends[0])]]
        : axis.scale === "choice" ? axis.choices.map((choice, k) => [placeOn(axis, k), choice])
          : [[1, shownValue(axis, axis.high)], [0, shownValue(axis, axis.low)]];
      const stride = Math.ceil(labels.length / 9);
      return svg("g", { class: "axes" },
        svg("line", { x1: x(i), x2: x(i), y1: TOP, y2: TOP + AXIS_HEIGHT, class: "upright" }),
        svg("text", { x: x(i), y: 16, "text-anchor": "middle", class: "label" }, svg("title", {}, axis === null ? "accuracy" : axis.name), cut(name, SHORTENED)),
        labels.filter((_, k) => k % stride === 0).map(([share, text]) => svg("text", {
          x: x(i), y: axis !== null && axis.scale === "choice" ? y(share) - 5 : share === 1 ? TOP - 2 : TOP + AXIS_HEIGHT + 15,
          "text-anchor": "middle", class: "value" }, cut(text, SHORTENED))));
    });
    box.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `${rows.length} trials over ${view.axes.length} settings` }, lines, drawnAxes));
  });
  root.append(el("p", { class: "hint" }, `Accuracy after ${trials.compared}, which most trials reached. A line that is broken has no such setting.`));
}
