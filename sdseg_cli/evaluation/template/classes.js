// Shows one class of several: its outlines, its dots, and its values in the table of cases.
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const table = byId("case-table");
  const rows = table ? all("tbody tr[data-case]", table) : [];  // stability alone has none
  const mean = new Map(rows.map((row) => [row, cells(row).map((cell) => [cell.textContent, cell.dataset.value])]));
  let number = 0;  // of the class, from 1; 0 is the mean of all

  function cells(row) {
    return [...row.cells].slice(1);
  }

  function mark(within = document) {
    const isClass = number > 0 && number <= all("#class-filter .colour").length;
    for (const shape of all(".plot .of-class, path.of-class", within)) {
      shape.classList.toggle("off", isClass && !shape.classList.contains(`class-${number}`));
    }
  }

  function fill(row) {
    const found = number ? (data.values[number - 1][row.dataset.case] || []).slice(1) : mean.get(row);
    cells(row).forEach((cell, place) => {
      const [text, value] = found[place] || ["\u2013", null];
      cell.textContent = text;
      if (value === null || value === undefined) delete cell.dataset.value;
      else cell.dataset.value = value;
    });
  }

  // The values beside the chosen case are those of its row.
  function refresh() {
    const row = rows.find((one) => one.classList.contains("chosen"));
    const shown = all("#viewer-values dd");
    if (row) cells(row).forEach((cell, place) => { if (shown[place]) shown[place].textContent = cell.textContent; });
  }

  function choose(box) {
    number = Number(box.value);
    for (const row of rows) fill(row);
    all("#class-table tbody tr").forEach((row, place) => row.classList.toggle("on", place + 1 === number));
    for (const heading of all("thead th", table)) heading.setAttribute("aria-sort", "none");
    const name = box.closest("label").textContent.trim();
    byId("class-shown").textContent = number ? `Values: ${name}.` : "Values: mean of all classes.";
    mark();
    refresh();
  }
  for (const box of all("#class-filter input")) {
    box.checked = box.value === "";  // a browser may remember another state from before a reload
    box.addEventListener("change", () => choose(box));
  }

  // The chosen case is drawn without classes: its outlines are added here.
  const SVG = "http://www.w3.org/2000/svg";
  function outline(frame, panel) {
    const drawing = frame.querySelector("svg");
    if (!drawing || !panel || !panel.classes || frame.querySelector(".of-class")) return;
    panel.classes.forEach((pair, place) => {
      for (const rim of ["halo ", ""]) {
        ["reference", "prediction"].forEach((mask, side) => {
          if (!pair[side]) return;
          const path = document.createElementNS(SVG, "path");
          path.setAttribute("class", `${rim}${mask} of-class class-${place + 1}`);
          path.setAttribute("d", pair[side]);
          drawing.append(path);
        });
      }
    });
    mark(frame);
  }
  function redraw() {
    const chosen = data.ids.indexOf(byId("viewer-title").textContent);
    outline(byId("viewer-picture"), data.panels[chosen]);
    outline(byId("viewer-map"), data.maps[chosen]);
  }
  const seen = new MutationObserver(redraw);
  for (const id of ["viewer-picture", "viewer-map"]) seen.observe(byId(id), { childList: true });
  redraw();
})();
