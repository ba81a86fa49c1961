// A table that sorts, filters and turns pages, so that 1,000 classes are 50 rows at a time.
import { el, button } from "./dom.js";
import { count, whole } from "./format.js";

/**
 * columns: { title, value(row) -> number, string or null; cell(row) -> node or text; numeric, hint }.
 * filter(row) -> text that the search box looks into. sort: [column index, "ascending" or not].
 */
export function table({ caption, columns, rows, filter, pageSize = 50, sort = [0, "ascending"], noun }) {
  let [by, direction] = sort;
  let wanted = "";
  let page = 0;
  const body = el("tbody");
  const pager = el("div", { class: "pager" });
  const heads = columns.map((column, index) =>
    el("th", { scope: "col", class: column.numeric ? "number" : null, title: column.hint },
      button(column.title, () => {
        const flip = by === index && direction === "ascending";
        [by, direction, page] = [index, flip ? "descending" : "ascending", 0];
        show();
      }, { class: "sort" })));

  function compare(a, b) {
    const [left, right] = [columns[by].value(a), columns[by].value(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    const order = typeof left === "string"
      ? left.localeCompare(right, "en", { numeric: true }) : left - right;
    return direction === "ascending" ? order : -order;
  }

  function show() {
    const found = rows
      .filter((row) => !wanted || filter(row).toLowerCase().includes(wanted))
      .sort(compare);
    const pages = Math.max(1, Math.ceil(found.length / pageSize));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...found.slice(page * pageSize, (page + 1) * pageSize).map((row) =>
      el("tr", {}, columns.map((column, index) => el(index ? "td" : "th",
        { class: column.numeric ? "number" : null, scope: index ? null : "row" }, column.cell(row))))));
    heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index === by ? direction : "none");
    });
    pager.replaceChildren();
    if (pages > 1) {
      pager.append(
        button("Previous", () => { page -= 1; show(); }, { disabled: page === 0 }),
        el("span", {}, `${whole(page * pageSize + 1)} to ${whole(Math.min(found.length, (page + 1) * pageSize))} of ${count(found.length, ...noun)}`),
        button("Next", () => { page += 1; show(); }, { disabled: page === pages - 1 }),
      );
    } else if (wanted) {
      pager.append(el("span", {}, count(found.length, ...noun)));
    }
  }

  show();
  const search = rows.length > 12 ? el("input", {
    type: "search", placeholder: `Filter ${whole(rows.length)} ${noun[1]}`, "aria-label": "Filter",
    on: { input: (event) => { wanted = event.target.value.trim().toLowerCase(); page = 0; show(); } },
  }) : null;
  return el("div", { class: "table-box" }, search,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, heads)), body)),
    pager);
}
