// A table that sorts, and keeps its rows and cells while their figures change.

import { h, keyed, setClass, setText } from "/page/dom.js";

/**
 * `columns`: `{ key, label, short, num, sort(row), cell(td, row), text(row), head, wide, wrap, title }`. `cell` is called again and again for the
 * same element; `text` is enough where the cell is a text. `head` makes the cell the row's name. A column without
 * `sort` does not sort. One with `shown(rows)` is there only while that holds.
 */
export function table({ caption, columns, keyOf, sortBy, rowClass, empty = "nothing yet" }) {
  let order = sortBy ?? null;
  let rows = [];
  const body = h("tbody");
  const heads = columns.map((column) => {
    const content = column.sort
      ? h("button", { type: "button", onclick: () => sort(column) }, column.label)
      : h("span", { text: column.label });
    return h("th", { scope: "col", class: column.num ? "num" : null, title: column.title }, content);
  });
  const note = h("p", { class: "empty", text: empty });
  const grid = h("table", { class: "cards" }, h("caption", { class: "hidden", text: caption }), h("thead", {}, h("tr", {}, ...heads)), body);
  const scroll = h("div", { class: "scroll", role: "region", "aria-label": `${caption}, table`, tabindex: "0" }, grid);
  const element = h("div", {}, scroll, note);

  function sort(column) {
    const first = column.num ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const dir = order?.key === column.key && order.dir === first ? other : first;
    order = { key: column.key, dir };
    draw();
  }

  function make() {
    const tr = h("tr");
    for (const column of columns) {
      const name = [column.num && "num", column.wide && "wide", column.wrap && "wrap", column.narrow && "narrow"].filter(Boolean).join(" ");
      tr.append(column.head
        ? h("th", { scope: "row", class: name || null })
        : h("td", { class: name || null, "data-label": column.short ?? column.label }));
    }
    tr.gone = () => [...tr.children].forEach((cell) => cell.gone?.());
    return tr;
  }

  function fill(tr, row) {
    setClass(tr, rowClass?.(row) ?? "");
    columns.forEach((column, at) => {
      const cell = tr.children[at];
      if (column.cell) column.cell(cell, row);
      else setText(cell, column.text(row));
      cell.classList.toggle("void", cell.textContent === "–");
      cell.hidden = heads[at].hidden;
    });
  }

  function draw() {
    const column = columns.find((it) => it.key === order?.key);
    columns.forEach((it, at) => {
      if (it.shown) heads[at].hidden = !it.shown(rows);
      if (it.sort) heads[at].setAttribute("aria-sort", it === column ? order.dir : "none");
    });
    // Of equals the order stays: figures change, and rows should not dance.
    const byKey = (a, b) => keyOf(a).localeCompare(keyOf(b), "en", { numeric: true });
    const sorted = rows.toSorted((a, b) => (column ? compare(column.sort(a), column.sort(b), order.dir) : 0) || byKey(a, b));
    keyed(body, sorted, keyOf, make, fill);
    scroll.hidden = rows.length === 0;
    note.hidden = rows.length !== 0;
  }

  draw();
  return {
    element,
    update(next) { rows = next; draw(); },
    gone() { [...body.children].forEach((tr) => tr.gone()); },
  };
}

/** What cannot be said stands last, whichever way is sorted. */
function compare(a, b, dir) {
  const none = (value) => value === null || value === undefined;
  if (none(a) || none(b)) return none(a) - none(b);
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return dir === "descending" ? -order : order;
}
