"use strict";
// Sorts the tables and shows the chosen case. Text from files only ever becomes textContent.
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const natural = new Intl.Collator("en", { numeric: true }).compare;

  // Tables: a click on a heading sorts, a second one turns the order; undefined stays last.
  function sort(table, heading) {
    const place = heading.cellIndex;
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const sign = ascending ? 1 : -1;
    const isText = heading.classList.contains("text");
    const keyed = all("tbody tr", table).map((row) => {
      const cell = row.cells[place];
      const key = isText ? cell.textContent.trim() : parseFloat(cell.dataset.value);
      return { row, key };
    });
    keyed.sort((a, b) => {
      if (isText) return sign * natural(a.key, b.key);
      const missing = Number.isNaN(a.key) - Number.isNaN(b.key);
      return missing || (Number.isNaN(a.key) ? 0 : sign * (a.key - b.key));
    });
    table.tBodies[0].append(...keyed.map((item) => item.row));
    for (const other of all("thead th", table)) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }
  for (const table of all("table.sortable")) {
    for (const heading of all("thead th", table)) {
      heading.querySelector("button").addEventListener("click", () => sort(table, heading));
    }
  }

  // The case table, narrowed to what is typed.
  const caseTable = byId("case-table") || byId("stability-cases");
  const rowsOf = (table) => (table ? all("tbody tr", table) : []);
  const filter = byId("filter");
  if (filter) {
    filter.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      let count = 0;
      for (const row of rowsOf(caseTable)) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
        count += row.hidden ? 0 : 1;
      }
      byId("found").textContent = wanted ? `${count} found` : "";
    });
  }

  // Outlines on and off, everywhere at once.
  for (const box of all("input.toggle")) {
    box.checked = true;  // a browser may remember another state from before a reload
    box.addEventListener("change", () => {
      document.body.classList.toggle(`hide-${box.dataset.mask}`, !box.checked);
      for (const twin of all(`input.toggle[data-mask=${box.dataset.mask}]`)) {
        twin.checked = box.checked;
      }
    });
  }

  // The chosen case: picture, caption, values.
  const SVG = "http://www.w3.org/2000/svg";
  const viewer = byId("viewer");
  let chosen = -1;
  let opener = null;

  function outlines(panel) {
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("viewBox", `0 0 ${panel.width} ${panel.height}`);
    for (const rim of ["halo ", ""]) {  // the rims below both lines: a shared outline shows both
      for (const mask of ["reference", "prediction"]) {
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("class", rim + mask);
        path.setAttribute("d", panel[mask]);
        drawing.append(path);
      }
    }
    return drawing;
  }

  function scaleBar(panel) {
    const lengths = [1, 2, 5, 10, 20, 50, 100, 200].filter((mm) => mm <= panel.width_mm / 3);
    const bar = document.createElement("span");
    if (!lengths.length) return bar;
    const mm = lengths[lengths.length - 1];
    bar.className = "scale";
    bar.style.width = `${(100 * mm) / panel.width_mm}%`;
    bar.textContent = `${mm} mm`;
    return bar;
  }

  function letters() {
    return ["R", "A"].map((letter) => {
      const mark = document.createElement("span");
      mark.className = `side side-${letter.toLowerCase()}`;
      mark.textContent = letter;
      return mark;
    });
  }

  function picture(number, panel = data.panels[number]) {
    const frame = document.createElement("div");
    if (!panel) {
      frame.className = "no-picture";
      frame.textContent = "no picture of this case";
      return frame;
    }
    frame.className = "picture";
    const image = document.createElement("img");
    image.src = panel.src;
    image.width = panel.width;
    image.height = panel.height;
    image.alt = `Slice of case ${data.ids[number]}`;
    frame.append(image, outlines(panel));
    if (panel.width_mm) frame.append(scaleBar(panel), ...letters());
    return frame;
  }

  function values(row) {
    if (!row) return [];
    const names = all("thead th", row.closest("table"));
    return [...row.cells].slice(1).map((cell, i) => {
      const pair = document.createElement("div");
      const name = document.createElement("dt");
      const value = document.createElement("dd");
      name.textContent = names[i + 1].textContent.trim();
      value.textContent = cell.textContent.trim();
      pair.append(name, value);
      return pair;
    });
  }

  function show(number, row = null) {
    chosen = number;
    const line = row || rowsOf(caseTable).find((other) => Number(other.dataset.case) === number);
    byId("viewer-title").textContent = data.ids[number];
    byId("viewer-caption").textContent = data.panels[number] ? data.panels[number].caption : "";
    byId("viewer-picture").replaceChildren(picture(number));
    const map = data.maps[number];
    byId("viewer-map").replaceChildren(...(map ? [picture(number, map)] : []));
    byId("viewer-map-caption").textContent = map ? map.caption : "";
    byId("viewer-values").replaceChildren(...values(line));
    viewer.hidden = false;
    for (const marked of all(".chosen")) marked.classList.remove("chosen");
    for (const same of all(`[data-case="${number}"]`)) same.classList.add("chosen");
  }

  function open(number, row, from) {
    opener = from;
    show(number, row);
    viewer.classList.add("open");
  }

  function step(by) {
    const rows = rowsOf(caseTable).filter((row) => !row.hidden && row.dataset.case);
    if (!rows.length) return;
    const at = rows.findIndex((row) => Number(row.dataset.case) === chosen);
    const next = rows[(at + by + rows.length) % rows.length];
    show(Number(next.dataset.case), next);
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function close() {
    viewer.classList.remove("open");
    if (opener) opener.focus();
  }

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-case]");
    if (!target || String(document.getSelection())) return;
    open(Number(target.dataset.case), event.target.closest("tr[data-case]"), target);
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });

  // The same marks on the pictures that stand in the page.
  for (const frame of all("figure.panel")) {
    const panel = data[frame.dataset.kind][frame.dataset.case];
    if (panel && panel.width_mm) {
      frame.querySelector(".picture").append(scaleBar(panel), ...letters());
    }
  }

  // A dot says which case it is.
  const tip = byId("tip");
  document.addEventListener("pointerover", (event) => {
    const dot = event.target.closest("circle[data-case]");
    tip.hidden = !dot;
    if (!dot) return;
    tip.textContent = `${data.ids[dot.dataset.case]}  ${dot.dataset.text}`;
    const box = dot.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${box.top - tip.offsetHeight - 8}px`;
  });

  // With room beside the text, the worst case is there from the start.
  const first = document.querySelector("#cases figure.panel:last-of-type, #stability .case");
  if (first) show(Number(first.dataset.case));
  else if (data.ids.length && rowsOf(caseTable).length) show(0);
})();
