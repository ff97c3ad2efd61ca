"use strict";
// Sorts, filters and downloads tables, and downloads figures. Without this script the page still has all its content.

function saveBlob(name, blob) {
  const link = document.createElement("a");
  link.download = name;
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const text = cell => cell.textContent.replaceAll("\u00a0", " ").trim();

function csv(rows) {
  const field = cell => `"${text(cell).replaceAll('"', '""')}"`;
  return rows.map(row => [...row.cells].map(field).join(",") + "\n").join("");
}

// Order of two rows: numbers before text, and empty cells last in both directions.
function compare(column, sign) {
  return (a, b) => {
    const [x, y] = [a, b].map(row => text(row.cells[column]));
    if (!x || !y) return !x - !y;
    const [m, n] = [x, y].map(parseFloat);
    if (isNaN(m) !== isNaN(n)) return isNaN(m) - isNaN(n);
    return sign * (isNaN(m) || m === n ? x.localeCompare(y, "en", {numeric: true}) : m - n);
  };
}

// All rows as one list; the first cell of a section, which spans its rows, is repeated in each of them.
function flatten(bodies) {
  return bodies.flatMap(body => {
    const head = body.rows[0].cells[0];
    return [...body.rows].map((row, i) => {
      const copy = row.cloneNode(true);
      if (i) copy.prepend(head.cloneNode(true));
      copy.cells[0].removeAttribute("rowspan");
      copy.cells[0].scope = "row";
      return copy;
    });
  });
}

function addControls(table) {
  const sections = [...table.tBodies], rows = flatten(sections), flat = document.createElement("tbody");
  const title = text(table.caption), heads = [...table.tHead.rows[0].cells];
  const tools = document.createElement("div"), count = document.createElement("span");
  const long = rows.length > 10;
  let sorted = -1, sign = 1, filter = "";

  function show() {
    const shown = rows.filter(row => text(row).toLowerCase().includes(filter));
    if (sorted >= 0) shown.sort(compare(sorted, sign));
    for (const body of [...table.tBodies]) body.remove();
    flat.replaceChildren(...shown);
    table.append(...(sorted < 0 && !filter ? sections : [flat]));
    count.textContent = filter ? `${shown.length} of ${rows.length} rows` : "";
    heads.forEach((head, i) => head.ariaSort = i !== sorted ? "none" : sign > 0 ? "ascending" : "descending");
  }

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    // Successive clicks: ascending, descending, original order.
    button.addEventListener("click", () => {
      [sorted, sign] = sorted !== i ? [i, 1] : sign > 0 ? [i, -1] : [-1, 1];
      show();
    });
  });

  tools.className = "tools";
  if (long) {
    const label = document.createElement("label"), input = document.createElement("input");
    input.type = "search";
    input.addEventListener("input", () => {
      filter = input.value.trim().toLowerCase();
      show();
    });
    label.append("Filter rows", input);
    count.setAttribute("role", "status");
    tools.append(label, count);
  }
  const download = document.createElement("button");
  download.type = "button";
  download.textContent = "Download as CSV";
  download.addEventListener("click", () => {
    const lines = csv([table.tHead.rows[0], ...[...table.tBodies].includes(flat) ? flat.rows : rows]);
    saveBlob(`${title.replaceAll(/\W+/g, "-")}.csv`, new Blob([lines], {type: "text/csv"}));
  });
  tools.append(download);
  const frame = table.closest(".scroll");
  if (long) frame.before(tools);
  else frame.after(tools);
}

function svg(image) {
  const bytes = Uint8Array.from(atob(image.src.split(",")[1]), character => character.charCodeAt(0));
  return new Blob([bytes], {type: "image/svg+xml"});
}

function png(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * image.naturalWidth, 2 * image.naturalHeight];
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise(resolve => canvas.toBlob(resolve, "image/png"));
}

// Links lead to the files next to the page. This script saves the figure from the page itself instead, so that they
// also work when the page has been moved without its files.
function addDownloads(figure) {
  const image = figure.querySelector("img");
  for (const link of figure.querySelectorAll("a[download]")) {
    link.addEventListener("click", async event => {
      event.preventDefault();
      saveBlob(link.download, await (link.download.endsWith(".svg") ? svg : png)(image));
    });
  }
}

document.querySelectorAll("table").forEach(addControls);
document.querySelectorAll("figure").forEach(addDownloads);
