"""What report.html can do: sort a table by any column, and show one set, kind or checkpoint of it."""

SCRIPT = """
"use strict";
function value(cell) {
  const given = cell.dataset.v;
  if (given === undefined) return cell.textContent.trim().toLowerCase();
  return given === "" ? null : Number(given);
}
function before(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}
function sort(table, column, down) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row, place) => ({ row, place, v: value(row.cells[column]) }));
  rows.sort((a, b) => {
    if (a.v === null || b.v === null) return before(a.v, b.v) || a.place - b.place;
    return (down ? before(b.v, a.v) : before(a.v, b.v)) || a.place - b.place;
  });
  body.append(...rows.map((each) => each.row));
}
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    sort(table, column, down);
  }));
}
for (const picks of document.querySelectorAll("[data-picks]")) {
  const rows = document.querySelectorAll("#" + picks.dataset.picks + " tbody tr");
  const selects = Array.from(picks.querySelectorAll("select"));
  const show = () => rows.forEach((row) => {
    row.hidden = !selects.every((pick) => pick.value === "" || row.dataset[pick.name] === pick.value);
  });
  selects.forEach((pick) => pick.addEventListener("change", show));
  show();
}
"""
