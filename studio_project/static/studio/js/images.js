/** The user's pictures: a side panel for one, a selection for several. */

import { api } from "./api.js";
import { confirmAction } from "./dialog.js";
import { toast, toastProblem } from "./toast.js";

const grid = document.getElementById("images");
const panel = document.getElementById("panel");
const bar = document.getElementById("selection");

function showPanel(address) {
  htmx.ajax("GET", address, { target: "#panel-body", swap: "innerHTML" });
  if (!panel.open) panel.showModal();
}

function picked() {
  return [...(grid?.querySelectorAll(".pick:checked") ?? [])];
}

function showSelection() {
  const count = picked().length;
  bar.hidden = !count;
  grid?.classList.toggle("picking", count > 0);
  bar.querySelector("span").textContent = interpolate(ngettext("%s picture selected", "%s pictures selected", count), [count]);
}

async function deletePicked() {
  const boxes = picked();
  const sure = await confirmAction({
    title: interpolate(ngettext("Delete %s picture?", "Delete %s pictures?", boxes.length), [boxes.length]),
    text: gettext("The pictures and their parameters go for good."),
    action: gettext("Delete"),
  });
  if (!sure) return;
  let gone = 0;
  for (const box of boxes) {
    try {
      await api(`/api/images/${box.value}`, { method: "DELETE" });
      box.closest("li").remove();
      gone += 1;
    } catch (problem) {
      toastProblem(problem);
      break;
    }
  }
  if (gone) toast(interpolate(ngettext("%s picture deleted", "%s pictures deleted", gone), [gone]), { kind: "good" });
  showSelection();
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
grid?.addEventListener("change", showSelection);
bar.querySelector("[data-clear]").addEventListener("click", () => {
  for (const box of picked()) box.checked = false;
  showSelection();
});
bar.querySelector("[data-delete]").addEventListener("click", deletePicked);
grid?.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const tile = event.target.closest(".tile");
  if (!step || !tile) return;
  const tiles = [...grid.querySelectorAll(".tile")];
  tiles[tiles.indexOf(tile) + step]?.focus();
});
