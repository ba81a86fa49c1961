// Loss, accuracy, learning rate and speed over the run, on canvas by uPlot.
import { el, drawn, definitions } from "./dom.js";
import { decimal, percent, whole } from "./format.js";
import { colour, onColours } from "./theme.js";

const HEIGHT = 260;

function joined(tables) {
  return globalThis.uPlot.join(tables);
}

function plot({ title, data, series, format, axisFormat = format, fromZero = false, perEpoch }) {
  const box = el("div", { class: "plot" });
  let width = 0;
  let chart = null;
  const paint = () => {
    if (width === 0) return;
    chart?.destroy();
    const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false },
      font: `12px ${getComputedStyle(document.body).fontFamily}` };
    chart = new globalThis.uPlot({
      width, height: HEIGHT, tzDate: undefined,
      // Until a cursor asks for another place, the legend says how it ended.
      hooks: { ready: [(made) => made.setLegend({ idx: data[0].length - 1 })] },
      cursor: { sync: { key: "training" }, points: { size: 7 } },
      scales: { x: { time: false }, ...(fromZero ? { y: { range: (_, low, high) => [0, high * 1.1] } } : {}) },
      axes: [
        { ...axis, values: (_, values) => values.map((value) => whole(value)) },
        { ...axis, size: 58, values: (_, values) => values.map((value) => (value === null ? "" : axisFormat(value))) },
      ],
      series: [
        { label: "Epoch", value: (_, value) => (value === null ? "" : decimal(value, perEpoch)) },
        ...series.map((each) => ({
          label: each.label, stroke: colour(each.colour), width: each.width ?? 2, spanGaps: true,
          points: { show: each.points ?? false, size: 5, fill: colour("surface") },
          value: (_, value) => (value === null || value === undefined ? "" : format(value)),
        })),
      ],
    }, data, box);
  };
  drawn(box, (now) => {
    width = now;
    paint();
  });
  onColours(paint);
  return el("figure", { "aria-label": title }, el("figcaption", {}, title), box);
}

export function renderCurves(root, view) {
  const epochs = (steps) => steps.map((step) => step / view.steps_per_epoch);
  const [trained, validated] = [epochs(view.train.step), epochs(view.validation.step)];
  if (trained.length + validated.length === 0) {
    root.append(el("p", { class: "note" }, "Nothing was logged yet."));
    return;
  }
  const perEpoch = view.steps_per_epoch > 1 ? 2 : 0;
  const few = validated.length <= 60;
  const both = (train, validation) => joined([[trained, view.train[train]], [validated, view.validation[validation]]]);
  const pair = el("div", { class: "pair" });
  root.append(pair);
  const last = (values) => values.filter((value) => value !== null).at(-1) ?? null;
  // A plot measures its place, so it is put there before it is drawn.
  for (const options of [
    { title: "Loss", data: both("loss", "log_loss"), format: (value) => decimal(value, 3), axisFormat: (value) => String(Number(value.toPrecision(4))), series: [
      { label: view.label_smoothing ? "training (augmented, labels smoothed)" : "training (augmented)", colour: "muted", width: 1.25 },
      { label: "validation", colour: "accent", points: few }] },
    { title: "Accuracy", data: both("accuracy", "accuracy"), format: (value) => percent(value), axisFormat: (value) => percent(value, Number.isInteger(Math.round(value * 1e4) / 100) ? 0 : 1), series: [
      { label: "training (augmented)", colour: "muted", width: 1.25 },
      { label: "validation", colour: "accent", points: few }] },
    { title: "Learning rate", data: [trained, view.train.learning_rate],
      format: (value) => (value === 0 ? "0" : value < 0.01 ? value.toExponential(1) : decimal(value, 3)),
      series: [{ label: "learning rate", colour: "accent" }] },
    ...(view.timing.step.length > 1 ? [{ title: "Images per second", data: [epochs(view.timing.step), view.timing.images_per_second],
      format: (value) => whole(Math.round(value)), fromZero: true, series: [{ label: "images per second", colour: "accent" }] }] : []),
  ]) pair.append(plot({ ...options, perEpoch }));
  const waits = view.timing.wait_fraction.filter((value) => value !== null);
  const best = view.best_step === null ? -1 : view.validation.step.indexOf(view.best_step);
  root.append(definitions([
    ["Trained for", `${decimal(last(trained) ?? 0, perEpoch)} epochs`, el("span", { class: "hint" }, `${whole(last(view.train.step) ?? 0)} steps`)],
    ...(best >= 0 ? [["Best on validation", `${percent(view.validation.accuracy[best])} after ${decimal(validated[best], perEpoch)} epochs`]] : []),
    ...(waits.length ? [["Waited for images", percent(waits.reduce((a, b) => a + b, 0) / waits.length), el("span", { class: "hint" }, "of the time")]] : []),
  ]));
}
