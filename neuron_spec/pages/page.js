"use strict";

// What a cell is sorted by: its first number, or null where it has none.
function numberIn(text) {
  const found = text.replaceAll(",", "").match(/^[<+]?(-?\d+(\.\d+)?)/);
  return found ? Number(found[1]) : null;
}

function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const textOf = (row) => row.cells[column].textContent.trim();
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");

  const rows = [...body.rows], known = rows.filter((row) => textOf(row) !== "-");
  const numeric = known.every((row) => numberIn(textOf(row)) !== null);
  const compare = numeric
    ? (a, b) => numberIn(textOf(a)) - numberIn(textOf(b))
    : (a, b) => textOf(a).localeCompare(textOf(b), undefined, { numeric: true });
  known.sort((a, b) => (down ? -compare(a, b) : compare(a, b)));
  // What is not known stands last in either order.
  body.append(...known, ...rows.filter((row) => textOf(row) === "-"));
}

for (const button of document.querySelectorAll(".sortable th button"))
  button.addEventListener("click", () => sortBy(button.parentElement));

const zoom = document.getElementById("zoom");
for (const button of document.querySelectorAll("button.zoom"))
  button.addEventListener("click", () => {
    const image = button.querySelector("img").cloneNode();
    image.addEventListener("click", () => zoom.close());
    zoom.querySelector("div").replaceChildren(image);
    zoom.showModal();
  });
zoom.querySelector("button").addEventListener("click", () => zoom.close());

// Paper cannot be unfolded.
const folded = () => document.querySelectorAll("details");
addEventListener("beforeprint", () => folded().forEach((part) => { part.dataset.open = part.open; part.open = true; }));
addEventListener("afterprint", () => folded().forEach((part) => { part.open = part.dataset.open === "true"; }));
