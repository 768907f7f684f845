/** The user's pictures: a side panel for one, a selection for several. */

import { Selection } from "./selection.js";

const grid = document.getElementById("images");
const panel = document.getElementById("panel");

function showPanel(address) {
  htmx.ajax("GET", address, { target: "#panel-body", swap: "innerHTML" });
  if (!panel.open) panel.showModal();
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-panel]");
  if (!opener || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (opener.dataset.panel) showPanel(opener.dataset.panel);
});
panel.addEventListener("keydown", (event) => {
  const [newer, older] = panel.querySelectorAll("button[data-panel]");
  if (event.key === "ArrowLeft") newer?.click();
  if (event.key === "ArrowRight") older?.click();
});
if (grid) {
  new Selection(grid, document.getElementById("selection"), {
    addressOf: (box) => `/api/images/${box.value}`,
    warning: gettext("The pictures and their parameters go for good."),
  });
}
grid?.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const tile = event.target.closest(".tile");
  if (!step || !tile) return;
  const tiles = [...grid.querySelectorAll(".tile")];
  tiles[tiles.indexOf(tile) + step]?.focus();
});
