"use strict";

// Sorting: click on a header; missing values come last.
function sortValue(cell) {
  const given = cell.dataset.v;
  if (given === undefined) return cell.textContent.trim().toLowerCase();
  return given === "" ? null : Number(given);
}
function order(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}
function sortRows(table, column, descending) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row, place) => ({ row, place, v: sortValue(row.cells[column]) }));
  rows.sort((a, b) => {
    if (a.v === null || b.v === null) return (a.v === null) - (b.v === null) || a.place - b.place;
    return (descending ? order(b.v, a.v) : order(a.v, b.v)) || a.place - b.place;
  });
  body.append(...rows.map((each) => each.row));
}
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortRows(table, column, descending);
  }));
}

// Filters: full tokens stay visible as the reference when methods or budgets are filtered.
const KEEPS_REFERENCE = ["method", "budget"];
for (const bar of document.querySelectorAll("[data-filters]")) {
  const section = document.querySelector(`[data-filtered=${bar.dataset.filters}]`);
  const selects = Array.from(bar.querySelectorAll("select"));
  const shown = (row) => selects.every((select) => select.value === ""
    || row.dataset[select.name] === select.value
    || (row.classList.contains("reference") && KEEPS_REFERENCE.includes(select.name)));
  const apply = () => {
    for (const row of section.querySelectorAll("tbody tr")) row.hidden = !shown(row);
    for (const box of section.querySelectorAll(".fit")) box.hidden = !box.querySelector("tbody tr:not([hidden])");
    section.querySelectorAll("details").forEach(count);
  };
  selects.forEach((select) => select.addEventListener("change", apply));
  apply();
}
document.querySelectorAll("details").forEach(count);
function count(folded) {
  const rows = Array.from(folded.querySelectorAll("tbody tr")).filter((row) => !row.hidden);
  const significant = rows.filter((row) => row.dataset.significant !== undefined).length;
  const pairs = rows.length === 1 ? "1 pair" : `${rows.length} pairs`;
  folded.querySelector(".count").textContent = `${pairs}, ${significant} significant after Holm's correction`;
  folded.hidden = rows.length === 0;
}

// A table that is wider than its section becomes one card a row, so that nothing is cut off.
function fit(box) {
  box.classList.remove("cards-layout");
  box.classList.toggle("cards-layout", box.scrollWidth > box.clientWidth);
}
const widths = new Map();
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (widths.get(target) === target.clientWidth) continue;
    widths.set(target, target.clientWidth);
    fit(target);
  }
});
document.querySelectorAll(".fit").forEach((box) => { fit(box); observer.observe(box); });
