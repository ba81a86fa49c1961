// What first screens are made of: a number on its scale, findings, things to do, small figures.
import { el, svg, drawn } from "./dom.js";
import { decimal, percent, range } from "./format.js";

export function scale(judged) {
  const box = el("div", { class: "scale" });
  const [low, high] = judged.interval;
  drawn(box, (width) => {
    const height = 64;
    const x = (share) => 1 + share * (width - 2);
    const majority = judged.majority;
    // The words stay inside: they are about 180 px wide.
    const edge = x(majority) < 90 ? "start" : x(majority) > width - 90 ? "end" : "middle";
    box.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `${percent(judged.accuracy)}, 95% interval ${range(judged.interval)}; always naming the most frequent class would get ${percent(majority)}` },
      svg("rect", { class: "track", x: x(0), y: 14, width: x(1) - x(0), height: 10, rx: 5 }),
      svg("rect", { class: "fill", x: x(0), y: 14, width: x(low) - x(0), height: 10, rx: 5 }),
      svg("rect", { class: "band", x: x(low), y: 8, width: Math.max(2, x(high) - x(low)), height: 22, rx: 3 }),
      svg("line", { class: "here", x1: x(judged.accuracy), x2: x(judged.accuracy), y1: 4, y2: 34 }),
      svg("line", { class: "tick", x1: x(majority), x2: x(majority), y1: 10, y2: 38 }),
      svg("text", { x: edge === "start" ? x(0) : x(majority), y: 54, "text-anchor": edge },
        `${percent(majority, 0)}: always the largest class`),
      width - x(majority) > 240 ? svg("text", { x: x(1), y: 54, "text-anchor": "end" }, "all right") : null,
    ));
  });
  return box;
}

export function figure(each) {
  const show = each.share ? percent : decimal;
  return el("div", { class: "figure" },
    el("dt", {}, each.label),
    el("dd", {},
      el("span", { class: "value" }, show(each.value)),
      each.interval ? el("span", { class: "interval" }, range(each.interval, show)) : null,
      each.hint ? el("span", { class: "hint" }, each.hint) : null));
}

export function finding(each) {
  return el("li", { class: `finding ${each.level}` },
    el("a", { href: `#${each.section}` }, each.title), el("p", {}, each.detail));
}

export function step(each) {
  return el("li", {},
    each.section ? el("a", { href: `#${each.section}` }, each.title) : el("strong", {}, each.title),
    el("p", {}, each.detail),
    each.command ? el("code", { class: "command" }, each.command) : null);
}
