// Every judged image as a point beside those that the model finds alike.
import { el, svg, drawn } from "./dom.js";
import { percent, quoted, whole } from "./format.js";
import { openPicture } from "./pictures.js";

const MOST_COLOURS = 40;

function hue(index, size) {
  // Neighbouring classes get colours far apart: the golden angle.
  return size > MOST_COLOURS ? 0 : (index * 137.508) % 360;
}

export function renderMap(root, view, mistakes) {
  const pictures = new Map((mistakes?.items ?? []).map((item) => [item.id, item]));
  const size = view.classes.length;
  let only = "";
  const says = el("p", { class: "picked-text", "aria-live": "polite" }, "Choose a point.");
  const box = el("div", { class: "map" });
  const about = (point) => {
    const wrong = point.label !== point.predicted;
    return `${wrong ? `${quoted(view.classes[point.label])} taken for ${quoted(view.classes[point.predicted])}` : quoted(view.classes[point.label])} (${percent(point.sure)})`;
  };
  const paint = (width) => {
    const height = Math.min(560, Math.max(320, width * 0.6));
    const place = (point) => [12 + ((point.x + 1) / 2) * (width - 24), 12 + ((1 - point.y) / 2) * (height - 24)];
    const shown = view.points.filter((point) => only === "" || point.label === Number(only) || point.predicted === Number(only));
    // The wrong ones last, so that they lie on top.
    shown.sort((a, b) => Number(a.label !== a.predicted) - Number(b.label !== b.predicted));
    const nodes = shown.map((point) => {
      const [cx, cy] = place(point);
      const wrong = point.label !== point.predicted;
      const node = svg("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: wrong ? 5 : 3.5, class: wrong ? "point-wrong" : "point-right" }, svg("title", {}, about(point)));
      // As a property: a style in the markup is what the page's policy forbids.
      node.style.setProperty("--hue", hue(point.label, size).toFixed(0));
      node.addEventListener("click", () => {
        says.textContent = about(point);
        const item = pictures.get(point.id);
        if (item) openPicture(item, view.classes, [item]);
      });
      return node;
    });
    box.replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `${whole(shown.length)} images by likeness` }, nodes));
  };
  const select = el("select", { on: { change: (event) => { only = event.target.value; paint(Math.floor(box.clientWidth)); } } },
    el("option", { value: "" }, "all"), view.classes.map((name, index) => el("option", { value: index }, name)));
  const legend = size <= MOST_COLOURS ? el("ul", { class: "legend" }, view.classes.map((name, index) =>
    el("li", {}, el("span", { class: "swatch", css: { "--hue": hue(index, size).toFixed(0) } }), name))) : null;
  root.append(el("div", { class: "controls" }, el("label", {}, "Class ", select),
    el("p", {}, "Ringed points are mistakes; those with a picture open it.")), box, says, legend ?? "");
  drawn(box, paint);
}
