// An audit: what is wrong with the images, with the images.
import { el, button, definitions } from "./dom.js";
import { count, whole } from "./format.js";
import { LEVELS, renderData } from "./data.js";
import { start } from "./start.js";

const FIRST = 12;

/** Some of `items` at first, all of what is kept when asked; `total` is how many there are. */
function some(items, total, draw, noun, box) {
  const more = el("p", { class: "pager" });
  let shown = 0;
  const show = () => {
    const next = items.slice(shown, shown === 0 ? FIRST : items.length);
    box.append(...next.map(draw));
    shown += next.length;
    const left = items.length - shown;
    more.replaceChildren(...(left > 0 ? [button(`Show ${whole(left)} more`, show)] : []),
      ...(left === 0 && total > items.length ? [el("span", { class: "hint" }, `${whole(items.length)} of ${count(total, noun)}`)] : []));
  };
  show();
  return el("div", {}, box, more);
}

function shot(each, pictures) {
  return el("figure", { class: "shot", title: each.name },
    each.picture === null ? el("span", { class: "blank" }, "no picture kept")
      : el("img", { src: pictures[each.picture], alt: "" }),
    el("figcaption", {}, el("bdi", {}, each.name)));
}

function evidence(found, pictures) {
  if (found.groups.length > 0) {
    return some(found.groups, found.num_groups, (group) => el("div", { class: "group" },
      group.images.map((each) => shot(each, pictures)),
      group.more > 0 ? el("p", { class: "hint" }, `and ${whole(group.more)} more`) : null), "group", el("div", { class: "groups" }));
  }
  const kept = found.images.filter((each) => each.picture !== null);
  if (kept.length > 0) {
    return some(kept, found.count, (each) => shot(each, pictures), "image", el("div", { class: "shots" }));
  }
  if (found.images.length === 0) return null;
  return some(found.images, found.count, (each) => el("li", {}, el("bdi", {}, each.name)), "file", el("ul", { class: "names" }));
}

function renderFindings(root, view) {
  if (view.items.length === 0) {
    root.append(el("p", { class: "note" }, "Nothing. Every image can be read, none stands in two places, and no class stands out."));
    return;
  }
  document.body.classList.toggle("small-pictures", view.small);
  root.append(...view.items.map((each, number) => el("article", { class: "found", id: `finding-${number}` },
    el("h3", { class: `finding ${LEVELS[each.severity]}` }, each.message),
    el("p", { class: "hint" }, el("code", {}, each.code), ` \u00b7 ${each.severity}`),
    evidence(each, view.pictures))));
}

function renderAuditSummary(root, view) {
  const level = view.worst === null ? "fine" : LEVELS[view.worst];
  root.append(el("p", { class: "eyebrow" }, "Audit"), el("h1", {}, view.name),
    el("div", { class: "first two" },
      el("div", { class: "good" },
        el("p", { class: "big" }, whole(view.used),
          el("span", { class: "of" }, `of ${count(view.found, "file")} can be used`)),
        definitions([
          ["Looked at in", `${view.elapsed} s`],
          ["Formats", Object.entries(view.formats).map(([name, n]) => `${whole(n)} ${name}`).join(", ") || "\u2013"],
        ])),
      el("div", { class: "wrong" }, el("h2", {}, "What stands out"),
        el("ul", {}, view.headlines.length === 0
          ? [el("li", { class: `finding ${level}` }, el("strong", {}, "Nothing"), el("p", {}, "No finding at all."))]
          : view.headlines.map((each) => el("li", { class: `finding ${LEVELS[each.severity]}` },
            el("a", { href: `#finding-${each.number}` }, each.message)))))));
}

start({ summary: renderAuditSummary, findings: renderFindings, data: renderData });
