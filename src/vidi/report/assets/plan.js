// Every decision with its reason, and what was measured to take it.
import { el } from "./dom.js";
import { decimal, whole, words } from "./format.js";
import { table } from "./table.js";

const GROUPS = [
  ["model", "Network"], ["pixels", "Pixels"], ["augment", "Augmentation"], ["optimizer", "Optimizer"],
  ["schedule", "Schedule"], ["execution", "Machine"], ["", "Training"],
];

const PLAIN = { True: "yes", False: "no", None: "none" };

function group(title, decisions) {
  return el("div", { class: "decisions" }, el("h3", {}, title), el("dl", {}, decisions.map((each) => [
    el("dt", {}, words(each.name), el("span", { class: "value" }, PLAIN[each.value] ?? each.value)),
    el("dd", { class: each.reason === "asked for" ? "asked" : null }, each.reason),
  ])));
}

export function renderPlan(root, view) {
  const prefixOf = (name) => (name.includes(".") ? name.split(".")[0] : "");
  const known = new Set(GROUPS.map(([prefix]) => prefix));
  root.append(el("div", { class: "plan" }, GROUPS.map(([prefix, title]) => {
    const own = view.decisions.filter((each) => {
      const found = prefixOf(each.name);
      return prefix === "" ? found === "" || !known.has(found) : found === prefix;
    });
    return own.length ? group(title, own) : null;
  })));
  if (view.measured.length) {
    const one = (row) => row.images_per_second;
    root.append(el("h3", { class: "apart" }, "What was measured"), table({
      caption: "Training steps tried on this machine", noun: ["candidate", "candidates"], rows: view.measured, sort: [4, "descending"],
      filter: (row) => row.precision, columns: [
        { title: "Precision", value: (row) => row.precision, cell: (row) => row.precision },
        { title: "Layout", value: (row) => String(row.channels_last), cell: (row) => (row.channels_last ? "channels last" : "channels first") },
        { title: "Batch", numeric: true, value: (row) => row.batch_size, cell: (row) => whole(row.batch_size) },
        { title: "Threads", numeric: true, value: (row) => row.threads, cell: (row) => whole(row.threads) },
        { title: "Images per second", numeric: true, value: one, cell: (row) => (one(row) < 100 ? decimal(one(row), 1) : whole(Math.round(one(row)))) },
        { title: "Out because", value: (row) => row.rejected || null, cell: (row) => row.rejected || "" },
      ] }));
  }
  const asked = Object.entries(view.config).flatMap(([section, settings]) =>
    Object.entries(settings).map(([name, value]) => `${section}.${name} = ${JSON.stringify(value)}`));
  root.append(el("details", {}, el("summary", {}, "What was asked for"),
    el("pre", {}, asked.length ? asked.join("\n") : "Nothing: vidi decided everything.")));
}
