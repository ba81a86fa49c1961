// Labels that the model doubts, with the picture where one was kept.
import { el } from "./dom.js";
import { count, percent } from "./format.js";
import { openPicture } from "./pictures.js";
import { table } from "./table.js";

export function renderSuspects(root, view, mistakes) {
  if (view.rows.length === 0) {
    root.append(el("p", { class: "note" }, "None: where another class is likelier, the label's is not unlikely."));
    return;
  }
  const pictures = new Map((mistakes?.items ?? []).map((item) => [item.id, item]));
  const shown = (row) => {
    const item = pictures.get(row.id);
    if (!item) return el("span", { class: "hint" }, row.name ?? `image ${row.id}`);
    return el("button", { type: "button", class: "thumb", title: item.name,
      on: { click: () => openPicture(item, view.classes, [item]) } }, el("img", { src: item.picture, alt: item.name, loading: "lazy" }));
  };
  root.append(
    el("p", { class: "hint" }, `${count(view.rows.length, "label")} of ${count(view.n, "judged image")}. `, el("code", {}, "vidi suspects RUN --csv FILE"), " writes them down to correct."),
    table({
      caption: "Doubtful labels", noun: ["label", "labels"], rows: view.rows, pageSize: 20, sort: [2, "ascending"],
      filter: (row) => `${view.classes[row.label]} ${view.classes[row.suggested]} ${row.name ?? ""}`,
      columns: [
        { title: "Image", value: (row) => row.id, cell: shown },
        { title: "Label", value: (row) => view.classes[row.label], cell: (row) => view.classes[row.label] },
        { title: "Its probability", numeric: true, value: (row) => row.own, cell: (row) => percent(row.own) },
        { title: "Rather", value: (row) => view.classes[row.suggested], cell: (row) => view.classes[row.suggested] },
        { title: "Its probability", numeric: true, value: (row) => row.other, cell: (row) => percent(row.other) },
      ],
    }));
}
