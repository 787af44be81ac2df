"""The one script of a page, without which it shows the same: values under the pointer, sorting.

It asks for nothing and writes text alone. The page's policy names its digest, so that no other
script can run in it.
"""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """\
"use strict";
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

function nearest(svg, event) {
  let found = null, least = 30;
  for (const mark of svg.querySelectorAll("[data-value]")) {
    const box = mark.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    const far = Math.hypot(x - event.clientX, y - event.clientY);
    if (far < least) [found, least] = [{ x, y, mark }, far];
  }
  return found;
}

for (const svg of document.querySelectorAll(".plot svg")) {
  svg.addEventListener("pointermove", (event) => {
    const found = nearest(svg, event);
    tip.hidden = !found;
    if (!found) return;
    tip.textContent = found.mark.dataset.value;
    const left = Math.min(found.x + 10, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${scrollX + left}px`;
    tip.style.top = `${scrollY + found.y - tip.offsetHeight - 8}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
}

function order(table, column, down) {
  const number = (text) => parseFloat(text.replace(/[\\s,+]/g, "").replace("\\u2212", "-"));
  const told = (row) => row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [number(told(a)), number(told(b))];
    return isNaN(x) || isNaN(y) ? told(a).localeCompare(told(b)) : x - y;
  };
  const rows = [...table.tBodies[0].rows].sort(compare);
  table.tBodies[0].append(...(down ? rows.reverse() : rows));
}

for (const table of document.querySelectorAll(".sortable table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      order(table, column, down);
    });
    head.replaceChildren(button);
  });
}
"""
"""Shows the value nearest to the pointer, and sorts tables of the class `sortable`."""

DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
"""Its SHA-256 in base64, as a Content-Security-Policy names it."""
