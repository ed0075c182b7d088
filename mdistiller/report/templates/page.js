// Tables are sorted by a click on a heading, once more turns the order, and a third time restores it.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows];
  // A row without a name belongs to the one above it.
  if (rows.length < 2 || rows.some(row => row.cells[0].textContent.trim() === "")) continue;
  const value = (row, n) => {
    const text = row.cells[n].textContent.trim().replace(/\u2212/g, "-");
    const number = text.match(/^[<(\[]?\s*([+-]?[\d.]+(?:e[+-]?\d+)?)/);
    return [number ? parseFloat(number[1]) : NaN, text];
  };
  [...table.tHead.rows[0].cells].forEach((head, n) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = {ascending: "descending", descending: "none"}[head.ariaSort] || "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (next === "none") return body.append(...rows);
      head.ariaSort = next;
      const sign = next === "ascending" ? 1 : -1;
      body.append(...[...rows].sort((one, other) => {
        const [a, x] = value(one, n), [b, y] = value(other, n);
        // What is no number stands last in either order.
        if (isNaN(a) !== isNaN(b)) return isNaN(a) ? 1 : -1;
        return sign * (isNaN(a) ? x.localeCompare(y) : a - b);
      }));
    });
  });
}
// The name of the line under the pointer, or near it.
const label = document.getElementById("name");
for (const picture of document.querySelectorAll("figure svg")) {
  for (const series of picture.querySelectorAll(".series")) {
    // A wider line that cannot be seen catches the pointer.
    for (const path of series.querySelectorAll(":scope > path")) {
      const wide = path.cloneNode();
      wide.removeAttribute("style");
      wide.setAttribute("style", "fill:none;stroke:#000;stroke-opacity:0;stroke-width:9");
      series.append(wide);
    }
  }
  picture.addEventListener("pointermove", event => {
    const series = event.target.closest(".series"), name = series && series.dataset.name;
    picture.classList.toggle("pointed", Boolean(series));
    for (const one of picture.querySelectorAll(".series"))
      one.classList.toggle("near", series !== null && one.dataset.name === name);
    label.style.display = series ? "block" : "none";
    if (!series) return;
    label.textContent = name;
    label.style.left = Math.min(event.clientX + 12, innerWidth - label.offsetWidth - 4) + "px";
    label.style.top = event.clientY + 14 + "px";
  });
  picture.addEventListener("pointerleave", () => {
    picture.classList.remove("pointed");
    label.style.display = "none";
  });
}
