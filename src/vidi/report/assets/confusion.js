// The confusion matrix: all cells for up to 40 classes, a picture and a list beyond that.
import { el, button } from "./dom.js";
import { count, percent, quoted, whole } from "./format.js";
import { tiles } from "./pictures.js";
import { table } from "./table.js";
import { colour, onColours } from "./theme.js";

const MOST_CELLS = 40;

function cellsOf(view) {
  const cells = [];
  for (let i = 0; i < view.cells.length; i += 3) {
    cells.push({ label: view.cells[i], predicted: view.cells[i + 1], n: view.cells[i + 2] });
  }
  return cells;
}

function panelFor(cell, classes, total, mistakes) {
  const name = quoted(classes[cell.label]);
  if (cell.label === cell.predicted) {
    return [el("h3", {}, `${name} recognised`),
      el("p", {}, `${whole(cell.n)} of ${count(total, "image")} (${percent(cell.n / total)}).`)];
  }
  const items = (mistakes?.items ?? []).filter(
    (item) => item.label === cell.label && item.predicted === cell.predicted);
  return [
    el("h3", {}, `${name} taken for ${quoted(classes[cell.predicted])}`),
    el("p", {}, `${whole(cell.n)} of ${count(total, "image")} (${percent(cell.n / total)}).`),
    items.length < cell.n ? el("p", { class: "hint" }, items.length === 0
      ? "No picture of these was kept: those of the most confident mistakes are."
      : `${whole(items.length)} of them were kept as pictures.`) : null,
    items.length ? tiles(items, classes) : null,
  ];
}

function matrix(view, cells, totals, choose) {
  const size = view.classes.length;
  const counts = new Map(cells.map((cell) => [cell.label * size + cell.predicted, cell]));
  const buttons = [];
  const rows = view.classes.map((name, label) => el("tr", {},
    el("th", { scope: "row", title: name }, el("span", {}, name)),
    view.classes.map((other, predicted) => {
      const cell = counts.get(label * size + predicted) ?? { label, predicted, n: 0 };
      const share = totals[label] ? cell.n / totals[label] : 0;
      const kind = label === predicted ? "right" : "wrong";
      const node = el("button", {
        type: "button", tabindex: buttons.length ? "-1" : "0",
        class: `cell ${cell.n ? kind : "none"}${share > 0.55 ? " full" : ""}`,
        css: { "--share": kind === "right" ? share : Math.sqrt(share) },
        "aria-label": `${name} called ${other}: ${cell.n}`,
        on: { click: () => choose(cell, node) },
      }, cell.n ? whole(cell.n) : "");
      buttons.push(node);
      return el("td", {}, node);
    })));
  const grid = el("table", { class: "matrix", css: { "--size": size } },
    el("caption", {}, "Images by label (rows) and answer (columns)"),
    el("thead", {}, el("tr", {}, el("td"), view.classes.map((name) =>
      el("th", { scope: "col", title: name }, el("span", {}, name))))),
    el("tbody", {}, rows));
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: size, ArrowUp: -size }[event.key];
    const target = buttons[buttons.indexOf(document.activeElement) + step];
    if (!step || !target) return;
    event.preventDefault();
    document.activeElement.setAttribute("tabindex", "-1");
    target.setAttribute("tabindex", "0");
    target.focus();
  });
  return el("div", { class: "scroll matrix-box" }, grid);
}

/** All cells as one image: a dot for each, large enough to see. */
function overview(view, cells, totals) {
  const size = view.classes.length;
  const side = Math.min(720, size);
  const canvas = el("canvas", { width: side, height: side, class: "overview", role: "img",
    "aria-label": `Overview of ${whole(size)} by ${whole(size)} cells` });
  const paint = () => {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    const dot = Math.max(1, Math.round(side / 260));
    const place = (index) => Math.floor((index * side) / size);
    for (const right of [true, false]) {
      context.fillStyle = colour(right ? "accent" : "bad");
      for (const cell of cells) {
        if ((cell.label === cell.predicted) !== right) continue;
        context.globalAlpha = Math.min(1, 0.15 + Math.sqrt(cell.n / totals[cell.label]));
        context.fillRect(place(cell.predicted), place(cell.label), dot, dot);
      }
    }
  };
  paint();
  onColours(paint);
  return el("figure", {}, canvas, el("figcaption", {}, "Every label (down) against every answer (across): a dot off the diagonal is a mix-up."));
}

export function renderConfusion(root, view, mistakes) {
  const cells = cellsOf(view);
  const totals = view.classes.map(() => 0);
  for (const cell of cells) totals[cell.label] += cell.n;
  const wrong = cells.filter((cell) => cell.label !== cell.predicted).sort((a, b) => b.n - a.n);
  const panel = el("div", { class: "panel", "aria-live": "polite" });
  let chosen = null;
  const choose = (cell, node) => {
    if (chosen) chosen.removeAttribute("aria-current");
    chosen = node;
    node?.setAttribute("aria-current", "true");
    panel.replaceChildren(...panelFor(cell, view.classes, totals[cell.label], mistakes).filter(Boolean));
    // Chosen in a list further down, or on a narrow screen, the answer may be out of sight.
    panel.scrollIntoView({ block: "nearest" });
  };
  const first = wrong.length
    ? [el("h3", {}, "Most frequent mix-ups"), el("ul", { class: "mixups" }, wrong.slice(0, 8).map((cell) =>
      el("li", {}, button([
        el("span", {}, view.classes[cell.label], el("span", { class: "arrow", "aria-hidden": "true" }, "\u2192"),
          view.classes[cell.predicted]),
        el("span", { class: "number" }, whole(cell.n))], () => choose(cell, null)))))]
    : [el("p", {}, "No image was taken for another class.")];
  panel.append(...first);
  if (view.classes.length <= MOST_CELLS) {
    root.append(el("div", { class: "beside" }, matrix(view, cells, totals, choose), panel));
    return;
  }
  root.append(el("div", { class: "beside" }, overview(view, cells, totals), panel), table({
    caption: "Mix-ups", noun: ["mix-up", "mix-ups"], rows: wrong, pageSize: 25, sort: [2, "descending"],
    filter: (cell) => `${view.classes[cell.label]} ${view.classes[cell.predicted]}`,
    columns: [
      { title: "Label", value: (cell) => view.classes[cell.label],
        cell: (cell) => button(view.classes[cell.label], () => choose(cell, null), { class: "link" }) },
      { title: "Taken for", value: (cell) => view.classes[cell.predicted], cell: (cell) => view.classes[cell.predicted] },
      { title: "Images", numeric: true, value: (cell) => cell.n, cell: (cell) => whole(cell.n) },
      { title: "Of the label's", numeric: true, value: (cell) => cell.n / totals[cell.label],
        cell: (cell) => percent(cell.n / totals[cell.label]) },
    ],
  }));
}
