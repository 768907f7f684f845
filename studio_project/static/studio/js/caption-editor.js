/** Captions and repeats typed in place: saved after a pause and on leaving, with the state beside them. */

import { api } from "./api.js";

const PAUSE_MS = 900;
const timers = new WeakMap();

async function save(area) {
  clearTimeout(timers.get(area));
  if (area.value === area.dataset.saved) return;
  const sent = area.value;
  const state = area.closest("li").querySelector("[data-state]");
  state.textContent = gettext("Saving…");
  area.removeAttribute("aria-invalid");
  try {
    await api(area.dataset.caption, { method: "PATCH", json: { caption: sent } });
    area.dataset.saved = sent;
    state.textContent = area.value === sent ? gettext("Saved") : "";
    area.dispatchEvent(new CustomEvent("caption:saved", { bubbles: true }));
  } catch (problem) {
    area.setAttribute("aria-invalid", "true");
    state.textContent = problem.errors?.caption?.[0]?.message ?? problem.message;
  }
}

async function saveRepeats(input) {
  if (!input.reportValidity()) return;
  const state = input.closest("li").querySelector("[data-state]");
  state.textContent = gettext("Saving…");
  try {
    await api(input.dataset.repeats, { method: "PATCH", json: { repeats: input.valueAsNumber } });
    state.textContent = gettext("Saved");
  } catch (problem) {
    state.textContent = problem.errors?.repeats?.[0]?.message ?? problem.message;
  }
}

/** Start editing inside a container whose fields name their address in `data-caption` or `data-repeats`. */
export function wireCaptions(container) {
  container.addEventListener("focusin", (event) => {
    const area = event.target.closest("[data-caption]");
    if (area && area.dataset.saved === undefined) area.dataset.saved = area.defaultValue;
  });
  container.addEventListener("input", (event) => {
    const area = event.target.closest("[data-caption]");
    if (!area) return;
    clearTimeout(timers.get(area));
    timers.set(area, setTimeout(save, PAUSE_MS, area));
  });
  container.addEventListener("change", (event) => {
    const input = event.target.closest("[data-repeats]");
    if (input) saveRepeats(input);
  });
  container.addEventListener("focusout", (event) => {
    const area = event.target.closest("[data-caption]");
    if (area) save(area);
  });
  container.addEventListener("keydown", (event) => {
    const area = event.target.closest("[data-caption]");
    if (!area || event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    const all = [...container.querySelectorAll("[data-caption]")];
    const next = all[all.indexOf(area) + 1];
    if (next) next.focus();
    else area.blur();
  });
}
