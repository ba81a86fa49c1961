// Every class with what is found, what is right of its answers, and its curves.
import { el, svg } from "./dom.js";
import { decimal, percent, range, whole, MISSING } from "./format.js";
import { chart, line } from "./chart.js";
import { table } from "./table.js";

function bar(row) {
  if (row.recall === null) return MISSING;
  const [low, high] = row.recall_interval;
  return el("span", { class: "with-bar", title: range(row.recall_interval) },
    svg("svg", { class: "mini", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", x: 0, y: 4, width: 100, height: 4 }),
      svg("rect", { class: "band", x: 100 * low, y: 1, width: Math.max(1, 100 * (high - low)), height: 10 }),
      svg("rect", { class: "here", x: Math.min(98.5, 100 * row.recall), y: 0, width: 1.5, height: 12 })),
    el("span", { class: "number" }, percent(row.recall)));
}

function curves(view) {
  if (view.curves.length === 0) return null;
  const names = view.rows.map((row) => row.name);
  // The class that has most to show: the one that is told apart worst.
  const worst = (a, b) => (view.rows[b.label].average_precision < view.rows[a.label].average_precision ? b : a);
  let chosen = view.curves.reduce(worst).label;
  const paintWith = (xs, ys) => (layer, x, y) => {
    for (const curve of [...view.curves].sort((a, b) => (a.label === chosen) - (b.label === chosen))) {
      const points = curve[xs].map((value, i) => [x(value), y(curve[ys][i])]);
      layer.append(line(points, curve.label === chosen ? "curve chosen" : "curve"));
    }
  };
  const unit = { domain: [0, 1], format: (value) => percent(value, 0) };
  const figures = [
    chart({ title: "Precision against recall", height: 300, x: { ...unit, label: "found (recall)" },
      y: { ...unit, label: "right of the answers" }, paint: paintWith("recall", "precision") }),
    chart({ title: "ROC", height: 300, x: { ...unit, label: "others called so" },
      y: { ...unit, label: "found" }, paint: paintWith("false_positive_rate", "true_positive_rate") }),
  ];
  const about = el("p", { class: "hint" });
  const say = () => {
    const row = view.rows[chosen];
    about.textContent = `Average precision ${decimal(row.average_precision)}, area under the ROC curve ${decimal(row.auc)}.`;
  };
  say();
  const every = view.curves.length === view.rows.length;
  return el("div", { class: "curve-box" },
    el("div", { class: "controls" }, el("label", {}, "One class against the rest: ",
      el("select", { on: { change: (event) => {
        chosen = Number(event.target.value);
        say();
        figures.forEach((each) => each.redraw());
      } } }, view.curves.map((curve) => el("option", { value: curve.label, selected: curve.label === chosen }, names[curve.label])))),
      about),
    every ? null : el("p", { class: "hint under" }, `The ${view.curves.length} classes with the lowest average precision.`),
    el("div", { class: "pair" }, figures));
}

export function renderClasses(root, view) {
  const average = (name) => `${decimal(view.averages[name].value)} (${range(view.averages[name].interval, decimal)})`;
  const names = view.rows.map((row) => row.name);
  root.append(
    view.notes.map((note) => el("p", { class: "note" }, note)).at(0) ?? "",
    table({
      caption: "Classes", noun: ["class", "classes"], rows: view.rows, sort: [2, "ascending"],
      pageSize: 30, filter: (row) => row.name,
      columns: [
        { title: "Class", value: (row) => row.name, cell: (row) => row.name },
        { title: "Images", numeric: true, value: (row) => row.n, cell: (row) => whole(row.n) },
        { title: "Found", hint: "Recall: share of its images that are recognised", numeric: true,
          value: (row) => row.recall, cell: bar },
        { title: "Right", hint: "Precision: share of its answers that are right", numeric: true,
          value: (row) => row.precision, cell: (row) => percent(row.precision) },
        { title: "F1", numeric: true, value: (row) => row.f1, cell: (row) => decimal(row.f1) },
        { title: "Most taken for", value: (row) => (row.taken_for ? names[row.taken_for[0]] : null),
          cell: (row) => (row.taken_for ? `${names[row.taken_for[0]]} (${whole(row.taken_for[1])})` : MISSING) },
      ],
    }),
    el("dl", { class: "averages" }, [["macro", `Every class the same (${whole(view.macro_classes)})`], ["weighted", "By number of images"]].map(
      ([kind, title]) => [el("dt", {}, title), el("dd", {},
        `precision ${average(`${kind}_precision`)}, recall ${average(`${kind}_recall`)}, F1 ${average(`${kind}_f1`)}`)])),
    curves(view) ?? "");
}
