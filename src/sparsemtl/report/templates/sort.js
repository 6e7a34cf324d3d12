// A click on a column's heading sorts its table: numbers by data-value, anything else by its text.
for (const heading of document.querySelectorAll("th[data-sort]")) {
  heading.addEventListener("click", () => {
    const place = heading.cellIndex, body = heading.closest("table").tBodies[0];
    const sign = (heading.dataset.sort = heading.dataset.sort === "up" ? "down" : "up") === "up" ? 1 : -1;
    const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  });
}
