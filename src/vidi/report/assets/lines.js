// The learning curves of all trials; one of them, by pointer, choice or arrow keys, in full.
import { el, svg } from "./dom.js";
import { chart, line } from "./chart.js";
import { count, percent, whole } from "./format.js";

export function renderLines(root, view, trials) {
  if (view.lines.length === 0) {
    root.append(el("p", { class: "note" }, "Nothing was judged yet."));
    return;
  }
  const rows = new Map(trials.rows.map((row) => [row.number, row]));
  const byNumber = new Map(view.lines.map((each) => [each.number, each]));
  let chosen = byNumber.has(view.best) ? view.best : view.lines[0].number;
  const all = view.lines.flatMap((each) => each.accuracy);
  // A head on kept features is judged after no update at all.
  const last = Math.max(1, ...view.lines.map((each) => each.steps.at(-1)));
  // One trial that learnt nothing must not press the others into a line: the lowest tenth may leave.
  const sorted = [...all].sort((a, b) => a - b);
  const floor = sorted[Math.floor(sorted.length * 0.1)];
  const top = sorted.at(-1);
  const low = Math.max(0, floor - 0.08 * Math.max(0.01, top - floor));
  const said = el("p", { class: "picked-text", role: "status" });
  const options = view.lines.map((each) => each.number);
  const picker = el("select", { "aria-label": "Trial", on: { change: () => choose(Number(picker.value)) } },
    options.map((number) => el("option", { value: number }, number === view.best ? `Trial ${number}, the best` : `Trial ${number}`)));
  const figure = chart({
    title: "Accuracy on validation images", height: 340,
    x: { domain: [0, last], label: "Updates", format: whole },
    y: { domain: [low, top + 0.02 * Math.max(0.01, top - low)], label: "Accuracy", format: (value) => percent(value, top - low < 0.05 ? 1 : 0) },
    paint: (layer, x, y, size) => {
      const inside = (each) => each.steps.map((step, i) => [x(step), Math.min(size.bottom, y(each.accuracy[i]))]);
      layer.append(...view.rungs.map((step) => svg("line", { class: "ideal", x1: x(step), x2: x(step), y1: size.top, y2: size.bottom })));
      for (const each of view.lines) {
        if (each.number === chosen) continue;
        const points = inside(each);
        const shape = points.length > 1 ? line(points, "curve") : svg("circle", { cx: points[0][0], cy: points[0][1], r: 2.5, class: "mark-dot" });
        shape.addEventListener("click", () => choose(each.number));
        layer.append(shape);
      }
      const own = inside(byNumber.get(chosen));
      if (own.length > 1) layer.append(line(own, "curve chosen"));
      layer.append(...own.map(([cx, cy]) => svg("circle", { cx, cy, r: 3, class: "point" })));
    },
  });
  function choose(number) {
    chosen = number;
    picker.value = String(number);
    const row = rows.get(number);
    const settings = Object.entries(row.settings).map(([name, value]) => `${name} = ${value}`).join(", ");
    said.textContent = `${percent(row.accuracy)} after ${count(row.step, "update")}${row.status === "paused" ? ", stopped there" : ""}: ${settings || row.origin || "nothing changed"}`;
    figure.redraw();
  }
  root.append(el("div", { class: "controls" }, el("label", {}, "Show ", picker)), said, figure);
  const notes = [
    ...(view.left_out ? [`${count(view.left_out, "more trial", "more trials")}, all worse, left out here.`] : []),
    ...(view.rungs.length > 1 ? ["Dashed: rungs, where trials are compared."] : []),
  ];
  root.append(...notes.map((text) => el("p", { class: "hint" }, text)));
  choose(chosen);
}
