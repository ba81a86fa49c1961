// The machine, the packages, the network's size.
import { el, definitions } from "./dom.js";
import { whole, words, MISSING } from "./format.js";

function shown(name, value) {
  if (value === null || value === "") return MISSING;
  if (name.endsWith("_bytes")) return `${(value / 2 ** 30).toFixed(1)} GiB`;
  if (typeof value === "number") return name.endsWith("_cores") || Number.isInteger(value) ? whole(value) : String(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.length ? value.map((each) => shown("", each)).join(", ") : "none";
  if (typeof value === "object") {
    return Object.entries(value).map(([key, each]) => `${key} ${shown(key, each)}`).join(" \u00b7 ");
  }
  return String(value);
}

function part(title, object) {
  return el("div", {}, el("h3", {}, title), definitions(
    Object.entries(object).map(([name, value]) => [words(name.replace(/_bytes$/, "")), shown(name, value)])));
}

export function renderEnvironment(root, view) {
  root.append(el("div", { class: "pair" }, part("Machine", view.machine),
    el("div", {}, view.model ? part("Network", view.model) : null,
      Object.keys(view.environment).length ? part("Software", view.environment) : null)));
}
