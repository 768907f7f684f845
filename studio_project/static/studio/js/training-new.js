/** The form for a new training: its review keeps up with the choices; Create, or Create and start. */

import { api } from "./api.js";
import { clearProblems, showProblems } from "./api-form.js";
import { bytes, duration } from "./format.js";
import "./model-picker.js";

const REVIEW_MS = 250;
// How long the form rests before a worker is asked to measure, and between two looks at the answer.
const COST_MS = 1500;
const OUTSIDE = new Set(["dataset_id", "base_model_id", "type", "title", "then"]);

const form = document.getElementById("training-form");
const review = document.getElementById("review");
const picker = form.querySelector("model-picker");
let timer = 0;
let costTimer = 0;

function askReview() {
  clearTimeout(timer);
  clearTimeout(costTimer);
  timer = setTimeout(() => htmx.trigger(review, "review"), REVIEW_MS);
}

/** Show the resolved values as the defaults of the fields that were left empty. */
function showDefaults() {
  const facts = review.querySelector("[data-resolved]");
  if (!facts) return;
  const resolved = JSON.parse(facts.dataset.resolved);
  showMethod(resolved.tune);
  for (const [name, value] of Object.entries(resolved)) {
    const field = form.elements[name];
    if (!field || field instanceof RadioNodeList) continue;
    if (field.tagName === "SELECT") {
      const chosen = [...field.options].find((option) => option.value === String(value));
      field.options[0].textContent = chosen ? interpolate(gettext("%s (preset)"), [chosen.textContent]) : gettext("As the preset says");
    } else if (name !== "trigger_word") field.placeholder = Array.isArray(value) ? value.join("\n") : String(value);
  }
}

/** Show what the chosen method knows, and hide the rest; a hidden field is not sent. */
function showMethod(tune) {
  const method = form.elements.type.value;
  for (const field of form.querySelectorAll("[data-methods]")) {
    const known = field.dataset.methods.split(" ").includes(method);
    field.hidden = !known || Boolean(tune && field.dataset.tune && field.dataset.tune !== tune);
  }
  for (const fold of form.querySelectorAll("details.fold")) {
    fold.hidden = !fold.querySelector("[data-methods]:not([hidden])");
  }
}

function settingOf(field, text) {
  const number = Number(text.replace(",", "."));
  switch (field.dataset?.kind) {
    case "number":
      return Number.isNaN(number) ? text : number;
    case "flag":
      return text === "true";
    case "texts":
      return text.split("\n").map((line) => line.trim()).filter(Boolean);
    default:
      return text;
  }
}

function bodyOf() {
  const config = {};
  for (const [name, text] of new FormData(form)) {
    const field = form.elements[name];
    if (OUTSIDE.has(name) || text.trim() === "" || field.closest?.("[hidden]")) continue;
    config[name] = settingOf(field, text.trim());
  }
  const values = new FormData(form);
  const dataset = values.get("dataset_id") || document.getElementById("other-dataset")?.value;
  return {
    dataset_id: dataset ? Number(dataset) : null,
    base_model_id: values.get("base_model_id") ? Number(values.get("base_model_id")) : null,
    type: values.get("type"),
    title: values.get("title") ?? "",
    config,
  };
}

/** Ask what the training costs; a worker that is free measures it meanwhile. */
async function askCost() {
  let cost;
  const asked = bodyOf();
  try {
    const { dataset_id, base_model_id, type, config } = asked;
    cost = await api("/api/training/estimate", { method: "POST", json: { dataset_id, base_model_id, type, config } });
  } catch {
    return;
  }
  const [time, memory] = [document.getElementById("cost-time"), document.getElementById("cost-memory")];
  if (!time || JSON.stringify(asked) !== JSON.stringify(bodyOf())) return;
  if (!cost.fits) time.textContent = gettext("does not fit the device’s memory");
  else if (cost.seconds) time.textContent = interpolate(gettext("about %s"), [duration(cost.seconds)]);
  else if (cost.measuring) time.textContent = gettext("being measured…");
  if (cost.peak_memory_bytes) memory.textContent = bytes(cost.peak_memory_bytes);
  if (cost.measuring && !document.hidden) costTimer = setTimeout(askCost, COST_MS);
}

async function submit(event) {
  event.preventDefault();
  clearProblems(form);
  const button = event.submitter ?? form.querySelector("[value=start]");
  button.setAttribute("aria-busy", "true");
  let created = null;
  try {
    created = await api("/api/training/", { method: "POST", json: bodyOf() });
    if (button.value === "start") await api(`/api/training/${created.id}/start`, { method: "POST" });
    location.assign(`/training/${created.id}`);
  } catch (problem) {
    // What could not be started is not left lying about: the form still holds it.
    if (created) api(`/api/training/${created.id}`, { method: "DELETE" }).catch(() => {});
    showProblems(form, problem);
    button.removeAttribute("aria-busy");
  }
}

/** Fill in what an earlier training was asked for. */
function restore() {
  for (const [name, value] of Object.entries(JSON.parse(form.dataset.asked || "{}"))) {
    const field = form.elements[name];
    if (!field) continue;
    field.value = Array.isArray(value) ? value.join("\n") : String(value);
    field.closest?.("details")?.setAttribute("open", "");
  }
}

restore();
showMethod("");
for (const choice of form.elements.type) choice.addEventListener("change", () => showMethod(""));
form.addEventListener("submit", submit);
form.addEventListener("input", askReview);
form.addEventListener("change", askReview);
picker.addEventListener("change", askReview);
document.getElementById("other-dataset")?.addEventListener("change", (event) => {
  if (!event.target.value) return;
  for (const radio of form.querySelectorAll("[name=dataset_id][type=radio]")) radio.checked = false;
  event.target.name = "dataset_id";
});
form.addEventListener("change", (event) => {
  if (event.target.type === "radio" && event.target.name === "dataset_id") {
    const other = document.getElementById("other-dataset");
    if (other) {
      other.value = "";
      other.removeAttribute("name");
    }
  }
});
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target !== review) return;
  showDefaults();
  clearTimeout(costTimer);
  if (review.querySelector("[data-known]:not([data-known=measured])")) costTimer = setTimeout(askCost, COST_MS);
});
askReview();
