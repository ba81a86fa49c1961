// A study: read the JSON of each part and draw it.
import { el, button, readView } from "./dom.js";
import { count, decimal, percent, range, whole } from "./format.js";
import { table } from "./table.js";
import { finding, scale, step } from "./first.js";
import { renderLines } from "./lines.js";
import { renderParallel } from "./parallel.js";
import { renderSlices } from "./slices.js";
import { renderImportance } from "./importance.js";
import { inPoints, renderEffects } from "./effects.js";
import { start } from "./start.js";

const KIND_TITLES = { tune: "Search", fit: "Fit", ablate: "Ablation" };
const STATUS_WORDS = { paused: "stopped early" };

function seconds(value) {
  return value === null ? "\u2013" : value < 100 ? `${decimal(value, 1)} s` : `${decimal(value / 60, 1)} min`;
}

function goodOfTrials(judged) {
  return [el("p", { class: "big" }, percent(judged.accuracy),
    el("span", { class: "of" }, `${whole(judged.n_right)} of ${count(judged.n, `${judged.split} image`)} right`)),
  scale(judged), el("p", { class: "sure" }, judged.sentence)];
}

function goodOfAblation(headline) {
  const [largest] = headline.largest;
  return [el("p", { class: "big" }, largest ? inPoints(largest.difference) : "\u00b10",
    el("span", { class: "of" }, largest ? `points: ${largest.name}, the largest ${largest.difference > 0 ? "gain" : "loss"} (${range(largest.interval, inPoints)})`
      : `no change of ${whole(headline.judged)} has an effect that is there for certain`)),
  el("p", { class: "sure" }, `${count(headline.helps, "change")} ${headline.helps === 1 ? "helps" : "help"}, ${whole(headline.hurts)} ${headline.hurts === 1 ? "hurts" : "hurt"}, of ${whole(headline.judged)} judged. ${headline.sentence}`)];
}

function renderStudySummary(root, view) {
  root.append(el("p", { class: "eyebrow" }, view.study),
    el("h1", {}, view.dataset || view.study, el("span", { class: "by" }, KIND_TITLES[view.kind])));
  const good = view.headline ? goodOfAblation(view.headline)
    : view.judged ? goodOfTrials(view.judged) : [el("p", { class: "sure" }, "No trial was judged yet.")];
  root.append(el("div", { class: "first" }, el("div", { class: "good" }, good),
    el("div", { class: "wrong" }, el("h2", {}, view.headline ? "What was found" : "What was tried"), el("ul", {}, view.tried.map(finding))),
    el("div", { class: "next" }, el("h2", {}, "What to do next"), el("ol", {}, view.steps.map(step)),
      view.final_report ? el("p", {}, el("a", { href: view.final_report }, "The report of the answer")) : null)),
  el("dl", { class: "figures" }, view.figures.map((each) => el("div", { class: "figure" }, el("dt", {}, each.label),
    el("dd", {}, el("span", { class: "value" }, each.value), el("span", { class: "hint" }, each.hint))))));
}

function renderRungs(root, view) {
  root.append(table({
    caption: "Rungs", noun: ["rung", "rungs"], rows: view.rows, sort: [0, "ascending"], filter: (row) => row.after,
    columns: [
      { title: "After", value: (row) => row.rung, cell: (row) => row.after },
      { title: "Judged", numeric: true, value: (row) => row.reached, cell: (row) => whole(row.reached) },
      { title: "Went on", numeric: true, value: (row) => row.went_on, cell: (row) => whole(row.went_on) },
      { title: "Best", numeric: true, value: (row) => row.best, cell: (row) => percent(row.best) },
      { title: "Median", numeric: true, value: (row) => row.median, cell: (row) => percent(row.median) },
      { title: "Training", numeric: true, value: (row) => row.seconds, cell: (row) => seconds(row.seconds) },
    ],
  }), ...view.order.map((each) => el("p", { class: "hint" },
    `Of two of the ${whole(each.trials)} trials that went from ${each.early} to ${each.late}, the better one stayed the better in ${percent(each.kept, 0)} of the cases.`)));
}

function renderBest(root, view) {
  const said = el("span", { class: "hint", role: "status" });
  const text = el("pre", { tabindex: "0" }, view.toml || "# nothing but the defaults");
  root.append(el("p", {}, view.number === null ? "" : `Trial ${view.number}${view.origin ? `: ${view.origin}` : ""}.`), text,
    el("div", { class: "row" }, button("Copy", () => {
      // The clipboard is closed to a page from the file system in some browsers: then it is marked.
      const copied = navigator.clipboard?.writeText(view.toml) ?? Promise.reject(new Error("closed"));
      copied.then(() => { said.textContent = "Copied."; }, () => {
        getSelection().selectAllChildren(text);
        said.textContent = "Marked: copy it with the keyboard.";
      });
    }), said), el("p", { class: "hint" }, "The study keeps it as best.toml."));
}

function renderTime(root, view) {
  const most = Math.max(1e-9, ...view.parts.map((each) => each.seconds));
  const whole_s = view.parts.reduce((sum, each) => sum + each.seconds, 0);
  root.append(el("ul", { class: "shares" }, view.parts.map((each) => el("li", {},
    el("span", { class: "name" }, each.what), el("span", { class: "meter", css: { "--share": each.seconds / most } }),
    el("span", { class: "number" }, seconds(each.seconds)),
    el("span", { class: "hint" }, percent(whole_s > 0 ? each.seconds / whole_s : 0, 0))))));
  if (view.wall_s !== null) root.append(el("p", { class: "hint" }, `${seconds(view.wall_s)} on the clock from the first event to the last, pauses among them.`));
  if (view.events.length === 0) return;
  root.append(el("details", {}, el("summary", {}, `What happened, ${count(view.events.length, "event")}`), table({
    caption: "Events", noun: ["event", "events"], rows: view.events, pageSize: 50, sort: [0, "ascending"],
    filter: (row) => `${row.event} ${row.about} ${row.trial ?? ""}`,
    columns: [
      { title: "After", value: (row) => row.at_s, cell: (row) => seconds(row.at_s) },
      { title: "Trial", numeric: true, value: (row) => row.trial, cell: (row) => (row.trial === null ? "" : whole(row.trial)) },
      { title: "What", value: (row) => row.event, cell: (row) => row.event },
      { title: "Why", value: (row) => row.about, cell: (row) => row.about },
    ],
  })));
}

function renderTrials(root, view) {
  root.append(table({
    caption: "Trials", noun: ["trial", "trials"], rows: view.rows, pageSize: 25, sort: [2, "descending"],
    filter: (row) => `${row.number} ${row.status} ${row.reason} ${row.origin} ${Object.entries(row.settings).flat().join(" ")}`,
    columns: [
      { title: "Trial", value: (row) => row.number, cell: (row) => (row.number === view.best ? `${row.number} (best)` : String(row.number)) },
      { title: "Status", value: (row) => row.status, cell: (row) => STATUS_WORDS[row.status] ?? row.status },
      { title: "Accuracy", numeric: true, value: (row) => row.accuracy, cell: (row) => percent(row.accuracy) },
      { title: "Updates", numeric: true, value: (row) => row.step, cell: (row) => whole(row.step) },
      { title: "Training", numeric: true, value: (row) => row.seconds, cell: (row) => seconds(row.seconds) },
      { title: "Settings", value: (row) => row.origin, cell: (row) => el("span", { class: "settings" },
        Object.entries(row.settings).map(([name, value]) => `${name} = ${value}`).join(", "),
        row.origin ? el("span", { class: "hint" }, row.origin) : null) },
      { title: "Reason", value: (row) => row.reason || null, cell: (row) => `${row.reason}${row.retries ? ` (${count(row.retries, "retry", "retries")})` : ""}` },
    ],
  }));
}

start({
  summary: renderStudySummary, effects: renderEffects, curves: renderLines, parallel: renderParallel, slices: renderSlices,
  importance: renderImportance, rungs: renderRungs, best: renderBest, time: renderTime, trials: renderTrials,
}, readView("trials"));
