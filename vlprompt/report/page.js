"use strict";
const data = JSON.parse(document.getElementById("data")?.textContent ?? "{}");

// Sorting: each block of rows by itself; what has no number stays last.
function valueOf(row, index) {
  const cell = row.cells[index];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const number = Number(cell.textContent.replaceAll(",", ""));
  return cell.textContent.trim() && Number.isFinite(number) ? number : cell.textContent.trim();
}

function compare(a, b, sign) {
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * a.localeCompare(b, undefined, { numeric: true });
}

function sort(heading) {
  const table = heading.closest("table");
  const descending = heading.getAttribute("aria-sort") !== "descending" && (heading.cellIndex > 0 || heading.hasAttribute("aria-sort"));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("heading"));
    rows.sort((a, b) => compare(valueOf(a, heading.cellIndex), valueOf(b, heading.cellIndex), descending ? -1 : 1));
    body.append(...rows);
  }
}

// The runs behind a number.
function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function facts(title, values) {
  const rows = Object.entries(values).map(([key, value]) => {
    const name = element("th", key);
    name.scope = "row";
    return element("tr", "", name, element("td", typeof value === "string" ? value : JSON.stringify(value)));
  });
  return [element("h3", title), element("table", "", element("tbody", "", ...rows))];
}

function describe(run) {
  const tests = Object.fromEntries(run.tests.map((test) => [
    test.target,
    `${test.accuracy.toFixed(2)} (zero-shot ${test.zero_shot.toFixed(2)}), ${test.n_images.toLocaleString("en")} images, split ${test.split.slice(0, 12)}`,
  ]));
  return [
    ...facts("Tested, top-1 accuracy in percent", tests),
    ...facts("Provenance", { file: run.file, ...run.provenance }),
    ...facts("Backbone", data.backbones[run.backbone]),
    ...facts("Settings", data.configs[run.config]),
  ];
}

function expand(button) {
  const row = button.closest("tr"), column = button.closest("td").dataset.column;
  const section = row.parentElement.querySelector(".heading")?.textContent.trim();
  const runs = button.dataset.runs.split(" ").map((number) => data.runs[number]);
  document.getElementById("dialog-title").textContent = [row.cells[0].textContent, section, column].filter(Boolean).join(" · ");
  const body = document.getElementById("dialog-body");
  body.replaceChildren(element("p", `${button.innerText.replaceAll("\n", " ")}, from ${runs.length} run${runs.length > 1 ? "s" : ""}`));
  for (const run of runs) {
    const details = element("details", "", element("summary", `${run.method}, ${run.dataset}, ${run.shots} shots, seed ${run.seed}`));
    details.addEventListener("toggle", () => details.children.length === 1 && details.append(...describe(run)));
    details.open = runs.length === 1;
    body.append(details);
  }
  const dialog = document.querySelector("dialog");
  dialog.showModal();
  dialog.scrollTop = 0;
}

document.addEventListener("click", (event) => {
  const heading = event.target.closest("main thead th"), cell = event.target.closest(".cell");
  if (heading) sort(heading);
  else if (cell) expand(cell);
  else if (event.target.nodeName === "DIALOG") event.target.close();
});

// A table that is wider than the page can be scrolled by keyboard; one that is not is no stop on the way.
const frames = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const frame of document.querySelectorAll(".scroll")) frames.observe(frame);

// On a phone rows are blocks, and some screen readers then see no table unless they are told.
const roles = { table: "table", "thead, tbody": "rowgroup", tr: "row", "thead th": "columnheader", "tbody th": "rowheader", td: "cell" };
for (const [parts, role] of Object.entries(roles)) {
  for (const part of document.querySelectorAll(`main :is(${parts})`)) part.setAttribute("role", role);
}

// One test's charts at a time.
for (const choice of document.querySelectorAll(".choice")) {
  const menu = choice.querySelector("select"), panels = [...choice.querySelectorAll(".panel")];
  const show = () => panels.forEach((panel, index) => { panel.hidden = index !== menu.selectedIndex; });
  menu.addEventListener("change", show);
  show();
}
