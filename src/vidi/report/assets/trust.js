// Reliability, and what answering only when sure would give.
import { el, svg, button, definitions } from "./dom.js";
import { count, decimal, percent, range, whole } from "./format.js";
import { area, chart, line } from "./chart.js";
import { table } from "./table.js";

const UNIT = { domain: [0, 1], format: (value) => percent(value, 0) };

function reliability(view) {
  let bins = view.reliability;
  const most = () => Math.max(...bins.map((each) => each.n));
  const figure = chart({
    title: "Said and right", height: 320, x: { ...UNIT, label: "what it says (top probability)" },
    y: { ...UNIT, label: "what is right" },
    paint: (layer, x, y) => {
      layer.append(line([[x(0), y(0)], [x(1), y(1)]], "ideal"));
      for (const each of bins) {
        const [px, py] = [x(each.confidence), y(each.accuracy)];
        layer.append(
          svg("line", { class: "whisker", x1: px, x2: px, y1: y(each.interval[0]), y2: y(each.interval[1]) }),
          svg("circle", { class: "point", cx: px, cy: py, r: 3 + 7 * Math.sqrt(each.n / most()) },
            svg("title", {}, `says ${percent(each.confidence)}, right ${percent(each.accuracy)} (${range(each.interval)}), ${count(each.n, "image")}`)));
      }
    },
  });
  const rows = el("tbody");
  const show = () => rows.replaceChildren(...bins.map((each) => el("tr", {},
    [`${percent(each.low, 0)} to ${percent(each.high, 0)}`, whole(each.n), percent(each.confidence), percent(each.accuracy), range(each.interval)]
      .map((text, i) => el("td", { class: i ? "number" : null }, text)))));
  show();
  if (view.temperature) {
    const both = { before: view.reliability, after: view.temperature.reliability };
    figure.append(el("div", { class: "row" }, Object.keys(both).map((name) =>
      button(name === "before" ? "As trained" : `Temperature ${decimal(view.temperature.value, 2)}`, () => {
        bins = both[name];
        show();
        figure.redraw();
      }))));
  }
  figure.append(el("details", {}, el("summary", {}, "As numbers"), el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ["Says", "Images", "Mean", "Right", "95% interval"].map((each, i) =>
      el("th", { scope: "col", class: i ? "number" : null }, each)))), rows))));
  return figure;
}

function coverage(view) {
  const points = view.coverage;
  const lowest = Math.min(...points.map((each) => each.interval[0]));
  // A round number just below everything that is drawn.
  const grain = lowest > 0.95 ? 100 : 20;
  const floor = Math.max(0, Math.min(1 - 1 / grain, Math.floor(lowest * grain) / grain));
  let chosen = null;
  const figure = chart({
    title: "Answering only when sure", height: 320,
    x: { ...UNIT, label: "share of the images answered" },
    y: { domain: [floor, 1], format: (value) => percent(value, 1 - floor < 0.06 ? 1 : 0), label: "right of the answers" },
    paint: (layer, x, y) => {
      const at = (each, value) => [x(each.coverage), y(Math.max(floor, value))];
      layer.append(
        area(points.map((each) => at(each, each.interval[1])), points.map((each) => at(each, each.interval[0])), "interval"),
        line(points.map((each) => at(each, each.accuracy)), "curve chosen"));
      if (points.length === 1) layer.append(svg("circle", { class: "point", cx: at(points[0], points[0].accuracy)[0], cy: at(points[0], points[0].accuracy)[1], r: 5 }));
      if (chosen) layer.append(svg("circle", { class: "picked", cx: x(chosen.coverage), cy: y(chosen.accuracy), r: 6 }));
    },
  });
  const says = el("p", { class: "picked-text", "aria-live": "polite" });
  const wantedText = el("output", {});
  const slider = el("input", { type: "range", min: 0, max: 100, step: 1, value: 60, id: "wanted" });
  // The right half of the slider covers the last part to 100%, where people choose.
  const wantedOf = (value) => view.accuracy + (1 - view.accuracy) * (value / 100);
  const pick = () => {
    const wanted = wantedOf(Number(slider.value));
    wantedText.textContent = percent(wanted);
    chosen = points.find((each) => each.accuracy >= wanted) ?? null;
    says.textContent = chosen === null
      ? `No threshold reaches ${percent(wanted)} on these images.`
      : `Answer where it says ${percent(chosen.threshold)} or more: ${percent(chosen.coverage)} of the images get an answer, ${percent(chosen.accuracy)} of the answers are right (${range(chosen.interval)}).`;
    if (figure.isConnected) figure.redraw();
  };
  slider.addEventListener("input", pick);
  pick();
  figure.append(el("div", { class: "picker" },
    el("label", { for: "wanted" }, "Right in at least ", wantedText), slider, says,
    el("p", { class: "hint" }, view.thresholds.length ? "Read off these same images, so a little flattering; the table below was chosen on validation images." : "Read off these same images, so a little flattering; choose on validation images before relying on it.")));
  return figure;
}

function thresholds(view) {
  const shown = view.thresholds.filter((each) => each.threshold !== null);
  if (!shown.length) return [];
  const here = shown.some((each) => each.here);
  const columns = [
    { title: "Right in", numeric: true, value: (row) => row.wanted, cell: (row) => percent(row.wanted) },
    { title: "Threshold", numeric: true, value: (row) => row.threshold, cell: (row) => percent(row.threshold) },
    { title: "Answered", numeric: true, value: (row) => (row.here ?? row).coverage, cell: (row) => percent((row.here ?? row).coverage) },
    { title: "Right", numeric: true, value: (row) => (row.here ?? row).accuracy ?? 0,
      cell: (row) => { const at = row.here ?? row; return at.accuracy === null ? "none" : percent(at.accuracy); } },
  ];
  return [el("article", { class: "found" }, el("h3", {}, "The thresholds of vidi predict"),
    el("p", { class: "hint" }, `What vidi predict ${view.run} PATHS --precision 0.95 goes by: found on the validation images, `
      + `for probabilities as they come, before any temperature${here ? `; answered and right are of the ${view.split} images, which had no say in them` : ""}.`),
    table({ caption: "Thresholds", noun: ["threshold", "thresholds"], rows: shown, pageSize: 10, sort: [0, "ascending"],
      filter: (row) => percent(row.wanted), columns }))];
}

export function renderTrust(root, view) {
  const verdict = view.ece <= view.ece_noise
    ? `It says ${percent(view.mean_confidence)} on average and is right in ${percent(view.accuracy)}. That is as close as ${count(view.n, "image")} can show.`
    : `It says ${percent(view.mean_confidence)} on average and is right in ${percent(view.accuracy)}. That is further apart than chance explains.`;
  root.append(
    el("p", { class: "verdict" }, verdict),
    el("div", { class: "pair" }, reliability(view), coverage(view)),
    ...thresholds(view),
    definitions([
      ["Calibration error", percent(view.ece), el("span", { class: "hint" }, `${view.binning}; a perfectly calibrated model stays under ${percent(view.ece_noise)} on ${count(view.n, "image")} 19 times out of 20`)],
      ["Brier score", decimal(view.brier), el("span", { class: "hint" }, "0 is perfect, 2 is certain and wrong every time")],
      ...(view.temperature ? [["Temperature", decimal(view.temperature.value, 3), el("span", { class: "hint" }, `fitted on ${view.temperature.fitted_on}; calibration error after it ${percent(view.temperature.ece)}`)]] : []),
    ]));
}
