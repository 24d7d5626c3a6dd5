/* Filters and sorts the table of algorithms, and makes wide tables readable in narrow windows. Without it the tables are
   plain tables. It reads what the cells say and loads nothing. */
"use strict";

(() => {
  /* What a field of the form offers: words -> which text of a cell fits. The name is the head of the column. */
  const atLeast = (least) => (text) => parseFloat(text) >= least;
  const atMost = (most) => (text) => parseFloat(text) <= most;
  const CHOICES = {
    teachers: {
      "any number": null,
      "works without one": (text) => /^(none|0)/.test(text),
      "one": (text) => /^(1|0 to 1)$/.test(text),
      "several": (text) => /or more$/.test(text),
    },
    labels: {
      "does not matter": null,
      "some samples lack one": (text) => text !== "all",
      "no sample has one": (text) => text === "none" || text === "no data",
      "there are no samples": (text) => text === "no data",
    },
    features: {
      "does not matter": null,
      "only answers are read": (text) => text === "no",
      "feature maps are read": (text) => text === "yes",
    },
    "gain, points": {
      "any": null,
      "above 0": (text) => parseFloat(text) > 0,
      "at least 0.5": atLeast(0.5),
      "at least 1": atLeast(1),
    },
    "step, times": {
      "any": null,
      "at most 1.2": atMost(1.2),
      "at most 2": atMost(2),
      "at most 5": atMost(5),
    },
  };

  /* Tables with as many columns are cards in a narrow window; a cell with more characters takes all of its width. */
  const COLUMNS = 4;
  const LONG = 24;

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const heads = (table) => [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const rows = (table) => [...table.tBodies[0].rows];
  const said = (row, column) => row.cells[column].textContent.trim();

  /* Each row can be a card: the style sheet writes the head above every cell, and gives long ones the whole width. */
  function nameCells(table) {
    const names = heads(table);
    table.dataset.named = "";
    for (const row of rows(table)) {
      [...row.cells].forEach((cell, i) => {
        cell.dataset.head = names[i];
        if (i === 0 && /^\d+$/.test(said(row, i))) cell.dataset.number = "";
        cell.classList.toggle("long", cell.textContent.length > LONG);
      });
    }
  }

  function filters(table) {
    const names = heads(table);
    const shown = element("output", { className: "catalogue-count" });
    const words = element("input", { type: "search", placeholder: "name, family or words", autocomplete: "off" });
    const form = element("form", { className: "catalogue-form" });
    form.append(element("label", {}, "words", words));
    const fields = [];
    for (const [head, choices] of Object.entries(CHOICES)) {
      const column = names.indexOf(head);
      if (column < 0) continue;
      const select = element("select", { name: head });
      for (const words of Object.keys(choices)) select.append(element("option", { value: words }, words));
      form.append(element("label", {}, head, select));
      fields.push({ column, fits: () => choices[select.value] });
    }
    const reset = element("button", { type: "button", className: "md-button" }, "Show all");
    form.append(reset, shown);

    const update = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows(table)) {
        const text = `${row.textContent} ${row.cells[0].dataset.also ?? ""}`.toLowerCase();
        const fits =
          wanted.every((word) => text.includes(word)) &&
          fields.every(({ column, fits }) => !fits() || fits()(said(row, column)));
        row.hidden = !fits;
        count += fits;
      }
      shown.textContent = `${count} of ${rows(table).length}`;
    };
    form.addEventListener("input", update);
    reset.addEventListener("click", () => {
      form.reset();
      update();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    update();
    return form;
  }

  /* A click on a head sorts by its column, a second one the other way round; what has no number comes last. */
  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numbers = rows(table).some((row) => !Number.isNaN(parseFloat(said(row, column))));
        const first = numbers ? "descending" : "ascending";
        const second = numbers ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? second : first;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => (numbers ? parseFloat(said(row, column)) : said(row, column));
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (numbers && (Number.isNaN(x) || Number.isNaN(y))) return Number.isNaN(x) - Number.isNaN(y);
          return sign * (numbers ? x - y : x.localeCompare(y));
        };
        table.tBodies[0].append(...rows(table).sort(compare));
      });
    });
  }

  for (const table of document.querySelectorAll("article table")) {
    if (table.tHead && heads(table).length >= COLUMNS) nameCells(table);
  }
  for (const table of document.querySelectorAll(".catalogue table")) {
    sortable(table);
    table.closest(".catalogue").prepend(filters(table));
  }
})();
