// Sorts a ranking by the column that is clicked, or chosen where the heads are not shown. Without it the page is whole.
document.querySelectorAll("table.ranking").forEach((table) => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => "value" in row.cells[i].dataset ? Number(row.cells[i].dataset.value) : null;
  const choice = document.createElement("select");
  const sort = (i, sign) => {
    const order = (a, b) => {
      const x = value(a, i), y = value(b, i);
      return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
    };
    [...body.rows].sort(order).forEach((row) => body.append(row));
    heads.forEach((head, k) => (k === i ? head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending") : head.removeAttribute("aria-sort")));
    choice.value = String(i);
  };
  heads.forEach((head, i) => {
    const first = /^(Accuracy|Over)/.test(head.textContent) ? -1 : 1;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(i, head.hasAttribute("aria-sort") ? (head.getAttribute("aria-sort") === "ascending" ? -1 : 1) : first));
    choice.add(new Option(i ? head.innerText.replace(/\s+/g, " ") : "as written", String(i)));
  });
  choice.addEventListener("change", () => {
    const i = Number(choice.value);
    sort(i, /^(Accuracy|Over)/.test(heads[i].textContent) ? -1 : 1);
  });
  const label = document.createElement("label");
  label.className = "sort";
  label.append("Sort by ", choice);
  table.parentElement.before(label);
});
