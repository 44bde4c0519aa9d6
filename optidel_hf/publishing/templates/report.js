"use strict";

// Tables sort by a click on a heading, again for the other way round; what was not measured stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const upwards = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      table.tBodies[0].append(...sorted([...table.tBodies[0].rows], column, upwards));
    });
  });
}

function sorted(rows, column, upwards) {
  const text = (row) => row.cells[column].textContent.trim();
  const number = (row) => parseFloat(text(row).replace("−", "-").replaceAll(",", ""));
  const told = rows.filter((row) => text(row) !== "–" && text(row) !== "");
  const numeric = told.every((row) => !Number.isNaN(number(row)));
  const order = numeric
    ? (a, b) => number(a) - number(b)
    : (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
  told.sort((a, b) => (upwards ? order(a, b) : order(b, a)));
  return [...told, ...rows.filter((row) => !told.includes(row))];
}

// A filter hides the rows that differ from it, and what the charts show of arms without a row left.
for (const form of document.querySelectorAll("form.filters")) {
  const section = form.closest("section");
  const rows = [...section.querySelectorAll("table.filtered tbody tr")];
  const main = [...section.querySelector("table.filtered").tBodies[0].rows];
  const apply = () => {
    const wanted = [...form.elements].filter((field) => field.name && field.value);
    for (const row of rows) {
      row.hidden = wanted.some((field) => field.name in row.dataset && row.dataset[field.name] !== field.value);
    }
    const left = main.filter((row) => !row.hidden);
    const arms = new Set(left.map((row) => row.dataset.arm));
    for (const mark of section.querySelectorAll("svg [data-arm], .legend [data-arm]")) {
      mark.toggleAttribute("hidden", !arms.has(mark.dataset.arm));
    }
    form.querySelector("output").value = `${left.length} of ${main.length} rows`;
  };
  form.addEventListener("change", apply);
  form.hidden = false;
  apply();
}
