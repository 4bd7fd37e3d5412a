"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const said = document.getElementById("said");

  // Sorting: by the first number of each cell where all cells begin with one, else as text.
  const collator = new Intl.Collator("en", { numeric: true });
  const number = /^[+\-\u2212]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?/i;
  const numberIn = (text) => {
    const found = text.match(number);
    return found ? Number(found[0].replace("\u2212", "-")) : NaN;
  };
  function order(rows, column, descending) {
    const keyed = rows.map((row) => {
      const text = row.cells[column].textContent.trim();
      return { row, text, value: numberIn(text) };
    });
    const filled = keyed.filter((item) => item.text);
    const numeric = filled.every((item) => !Number.isNaN(item.value));
    filled.sort((a, b) => {
      const by = (numeric ? a.value - b.value : 0) || collator.compare(a.text, b.text);
      return descending ? -by : by;
    });
    return [...filled, ...keyed.filter((item) => !item.text)].map((item) => item.row);
  }
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    for (const button of all("thead button", table)) {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const before = head.getAttribute("aria-sort");
        const next = { ascending: "descending", descending: null }[before];
        const direction = next === undefined ? "ascending" : next;
        for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
        if (direction) head.setAttribute("aria-sort", direction);
        const column = Number(button.dataset.column);
        const rows = direction ? order(original, column, direction === "descending") : original;
        body.append(...rows);
        body.classList.toggle("sorted", Boolean(direction));
        const title = table.caption.querySelector("h3").textContent.trim();
        const name = button.textContent.trim().replace(/\s+/g, " ");
        said.textContent = direction
          ? `${title}: sorted by ${name}, ${direction}`
          : `${title}: in the original order`;
      });
    }
  }

  // Commands break between words alone, not at the hyphens of options.
  for (const code of all("td code")) {
    code.replaceChildren(...code.textContent.split(" ").flatMap((word, place) => {
      const span = document.createElement("span");
      span.textContent = word;
      return place ? [" ", span] : [span];
    }));
  }

  // Filters: what names no preset, data or device belongs to all and stays.
  const form = document.getElementById("filters");
  const dimensions = all("select", form);
  const numbered = JSON.parse(document.getElementById("tags").textContent);
  const tagged = all("[data-tags]").map((element) => ({
    element, tags: numbered[element.dataset.tags],
  }));
  function filter() {
    for (const { element, tags } of tagged) {
      element.hidden = !dimensions.every(({ name, value }) =>
        !value || !tags[name] || tags[name].includes(value));
    }
    for (const group of all("[data-group]")) {
      group.hidden = !all("[data-tags]", group).some((element) => !element.hidden);
    }
    for (const link of all("nav a")) {
      const target = document.querySelector(link.getAttribute("href"));
      link.closest("li").hidden = Boolean(target && target.closest("[hidden]"));
    }
    const shown = (selector) => {
      const found = all(selector);
      return `${found.filter((e) => !e.closest("[hidden]")).length} of ${found.length}`;
    };
    form.querySelector("output").textContent =
      `Shown: ${shown(".table-block")} tables, ${shown("figure")} figures, `
      + `${shown("#records tbody tr")} records`;
  }
  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());

  // On paper everything is open.
  window.addEventListener("beforeprint", () => {
    for (const notes of all("details")) notes.open = true;
  });
  filter();
})();
