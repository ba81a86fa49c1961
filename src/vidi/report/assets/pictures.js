// Pictures of mistakes: tiles, and one of them large with what the model thought.
import { el, button } from "./dom.js";
import { count, percent, quoted, whole } from "./format.js";

const PAGE = 24;

function bars(item, classes) {
  const rows = item.top.map(([label, probability]) => [label, probability]);
  if (!rows.some(([label]) => label === item.label)) rows.push([item.label, item.own]);
  return el("ol", { class: "thoughts" }, rows.map(([label, probability]) =>
    el("li", { class: label === item.label ? "truth" : label === item.predicted ? "answer" : null },
      el("span", { class: "name" }, classes[label],
        label === item.label ? el("em", {}, "label") : null),
      el("span", { class: "meter", css: { "--share": probability } }),
      el("span", { class: "number" }, percent(probability)))));
}

export function openPicture(item, classes, items) {
  const dialog = document.getElementById("dialog");
  const at = items.indexOf(item);
  const go = (by) => {
    openPicture(items[(at + by + items.length) % items.length], classes, items);
    // The button that was pressed is gone; its successor takes the focus, so that keys go on.
    dialog.querySelectorAll(".row button")[by < 0 ? 0 : 1].focus();
  };
  dialog.onkeydown = (event) => {
    if (items.length < 2) return;
    if (event.key === "ArrowRight") go(1);
    if (event.key === "ArrowLeft") go(-1);
  };
  dialog.querySelector(".dialog-body").replaceChildren(
    el("div", { class: "large" }, el("img", { src: item.picture, alt: item.name }),
      item.heat ? el("img", { src: item.heat, alt: "", class: "heat", hidden: true }) : null),
    el("div", { class: "about" },
      el("h3", { id: "dialog-title" }, `${quoted(classes[item.label])} taken for ${quoted(classes[item.predicted])}`),
      bars(item, classes),
      item.near?.length ? el("div", { class: "near" }, el("p", { class: "hint" }, "Most alike among the training images:"),
        el("ul", {}, item.near.map((each) => el("li", {}, el("img", { src: each.picture, alt: "" }), el("span", {}, classes[each.label]))))) : null,
      el("p", { class: "path" }, item.name),
      el("div", { class: "row" },
        items.length > 1 ? button("Previous", () => go(-1)) : null,
        items.length > 1 ? button("Next", () => go(1)) : null,
        item.heat ? button("Where it looked", (event) => {
          const heat = dialog.querySelector(".heat");
          heat.hidden = !heat.hidden;
          event.currentTarget.setAttribute("aria-pressed", String(!heat.hidden));
        }, { "aria-pressed": "false" }) : null,
        button("Close", () => dialog.close(), { class: "primary" }))));
  if (!dialog.open) dialog.showModal();
}

/** Tiles of `items`, a page at a time. */
export function tiles(items, classes) {
  const box = el("div", { class: "tiles" });
  const more = el("div", { class: "pager" });
  let shown = 0;
  const show = () => {
    box.append(...items.slice(shown, shown + PAGE).map((item) => el("button", {
      type: "button", class: "tile", title: item.name, on: { click: () => openPicture(item, classes, items) },
    },
    el("img", { src: item.picture, alt: "", loading: "lazy" }),
    el("span", { class: "caption" },
      el("span", { class: "answer" }, classes[item.predicted]),
      el("span", { class: "sure" }, percent(item.top[0][1], 0)),
      el("span", { class: "truth" }, `is ${classes[item.label]}`)))));
    shown = Math.min(items.length, shown + PAGE);
    more.replaceChildren(...(shown < items.length
      ? [button(`Show ${Math.min(PAGE, items.length - shown)} more`, show)] : []));
  };
  show();
  return el("div", {}, box, more);
}

export function renderMistakes(root, view) {
  if (view.n_wrong === 0) {
    root.append(el("p", { class: "note" }, "There is none: every image was right. That is rare; see whether the images are too alike before believing it."));
    return;
  }
  if (view.items.length === 0) {
    root.append(el("p", { class: "note" }, `${count(view.n_wrong, "mistake")}, but no picture was kept.`));
    return;
  }
  // Everywhere on the page: 8 pixels drawn large are squares, not fog.
  document.body.classList.toggle("small-pictures", view.side_px <= 64);
  const box = el("div");
  const labels = new Map();
  for (const item of view.items) labels.set(item.label, (labels.get(item.label) ?? 0) + 1);
  const draw = (label) => box.replaceChildren(tiles(
    view.items.filter((item) => label === "" || item.label === Number(label)), view.classes));
  const choices = [...labels].sort((a, b) => b[1] - a[1]);
  root.append(el("div", { class: "controls" },
    el("label", {}, "Label ", el("select", { on: { change: (event) => draw(event.target.value) } },
      el("option", { value: "" }, "all"),
      choices.map(([label, n]) => el("option", { value: label }, `${view.classes[label]} (${n})`)))),
    el("p", {}, view.items.length < view.n_wrong
      ? `The ${whole(view.items.length)} most confident of ${count(view.n_wrong, "mistake")}.`
      : `All ${count(view.n_wrong, "mistake")}.`)), box);
  draw("");
}
