"use strict";
// Tables sort, filter and download; figures download. Without this script the page has all its content.

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

// Numbers before words, and what is empty last, whatever the direction.
function compare(column, sign) {
  return (a, b) => {
    const [x, y] = [a, b].map(row => text(row.cells[column]));
    if (!x || !y) return !x - !y;
    const [m, n] = [x, y].map(parseFloat);
    if (isNaN(m) !== isNaN(n)) return isNaN(m) - isNaN(n);
    return sign * (isNaN(m) || m === n ? x.localeCompare(y, "en", {numeric: true}) : m - n);
  };
}

// The rows as a flat list: what heads a section is written before each of its rows.
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

function enliven(table) {
  const sections = [...table.tBodies], rows = flatten(sections), flat = document.createElement("tbody");
  const title = text(table.caption), heads = [...table.tHead.rows[0].cells];
  const tools = document.createElement("div"), count = document.createElement("span");
  const long = rows.length > 10;
  let sorted = -1, sign = 1, wanted = "";

  function show() {
    const shown = rows.filter(row => text(row).toLowerCase().includes(wanted));
    if (sorted >= 0) shown.sort(compare(sorted, sign));
    for (const body of [...table.tBodies]) body.remove();
    flat.replaceChildren(...shown);
    table.append(...(sorted < 0 && !wanted ? sections : [flat]));
    count.textContent = wanted ? `${shown.length} of ${rows.length} rows` : "";
    heads.forEach((head, i) => head.ariaSort = i !== sorted ? "none" : sign > 0 ? "ascending" : "descending");
  }

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    // Up, down, and back to the order of the page.
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
      wanted = input.value.trim().toLowerCase();
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

// The links lead to the files beside the page; with a script the figure on the page will do.
function offer(figure) {
  const image = figure.querySelector("img");
  for (const link of figure.querySelectorAll("a[download]")) {
    link.addEventListener("click", async event => {
      event.preventDefault();
      saveBlob(link.download, await (link.download.endsWith(".svg") ? svg : png)(image));
    });
  }
}

document.querySelectorAll("table").forEach(enliven);
document.querySelectorAll("figure").forEach(offer);
