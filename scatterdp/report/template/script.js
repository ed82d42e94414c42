"use strict";

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/** A cell's value: its number where it has one, else its text. */
function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return collator.compare(String(a), String(b));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const body = table.tBodies[0];
      const known = (row) => row.cells[column].dataset.value !== "";
      const rows = [...body.rows].sort((first, second) => {
        if (known(first) !== known(second)) return known(first) ? -1 : 1; // what is not known comes last either way
        const order = compare(valueOf(first, column), valueOf(second, column));
        return descending ? -order : order;
      });
      body.append(...rows);
    });
  });
}

const words = document.getElementById("filter-words");
const dataset = document.getElementById("filter-dataset");
const count = document.getElementById("filter-count");
const rows = [...document.querySelectorAll("#results tbody tr")];

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = wanted.every((word) => text.includes(word)) && (!dataset || !dataset.value || row.dataset.group === dataset.value);
    row.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${rows.length} runs`;
}

words.addEventListener("input", filter);
if (dataset) dataset.addEventListener("change", filter);

/** Open the run that a link leads to. */
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  }
}

window.addEventListener("hashchange", openTarget);
openTarget();

const theme = document.getElementById("theme");
const themes = ["system", "light", "dark"];
theme.hidden = false;
theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "system") + 1) % themes.length];
  document.documentElement.dataset.theme = next;
  theme.textContent = `Colours: ${next}`;
});
