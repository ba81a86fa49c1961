// Small charts as SVG: axes, ticks, and a place to draw in.
import { el, svg, drawn } from "./dom.js";

const MARGIN = { left: 46, right: 14, top: 30, bottom: 42 };

/** Round numbers between low and high, about `wanted` of them. */
export function ticks(low, high, wanted = 5) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/**
 * A figure that redraws itself with its width. `paint(layer, x, y, size)` adds to `layer`; `x` and
 * `y` turn values into pixels. `x` and `y` of the options: { domain: [low, high], label, format };
 * `x` may name its own `ticks`.
 */
export function chart({ title, height = 280, x, y, paint }) {
  const box = el("div", { class: "chart" });
  const redraw = (width) => {
    const size = { width, height, left: MARGIN.left, right: width - MARGIN.right,
      top: MARGIN.top, bottom: height - MARGIN.bottom };
    const scale = (domain, from, to) => (value) =>
      from + ((value - domain[0]) / (domain[1] - domain[0])) * (to - from);
    const toX = scale(x.domain, size.left, size.right);
    const toY = scale(y.domain, size.bottom, size.top);
    const axes = svg("g", { class: "axes" });
    for (const value of x.ticks ?? ticks(...x.domain, Math.min(6, width / 80))) {
      axes.append(
        svg("line", { x1: toX(value), x2: toX(value), y1: size.top, y2: size.bottom }),
        svg("text", { x: toX(value), y: size.bottom + 17, "text-anchor": "middle" }, x.format(value)),
      );
    }
    for (const value of ticks(...y.domain, 5)) {
      axes.append(
        svg("line", { x1: size.left, x2: size.right, y1: toY(value), y2: toY(value) }),
        svg("text", { x: size.left - 8, y: toY(value) + 4, "text-anchor": "end" }, y.format(value)),
      );
    }
    axes.append(
      svg("text", { class: "label", x: size.right, y: height - 4, "text-anchor": "end" }, x.label),
      svg("text", { class: "label", x: 0, y: 12 }, y.label),
    );
    const layer = svg("g");
    const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": title }, axes, layer);
    box.replaceChildren(root);
    paint(layer, toX, toY, size);
  };
  const figure = el("figure", {}, el("figcaption", {}, title), box);
  // The box has no width before it is in the page.
  queueMicrotask(() => drawn(box, redraw));
  figure.redraw = () => redraw(Math.floor(box.clientWidth));
  return figure;
}

export function line(points, className) {
  const path = points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`);
  return svg("path", { d: path.join(""), class: className, fill: "none" });
}

export function area(above, below, className) {
  const path = [...above, ...below.slice().reverse()];
  const d = path.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
  return svg("path", { d: `${d}Z`, class: className });
}
