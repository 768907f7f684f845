/** The form for a new training: its review keeps up with the choices; Create, or Create and start. */

import { api } from "./api.js";
import { clearProblems, showProblems } from "./api-form.js";
import "./model-picker.js";

const REVIEW_MS = 250;
const NUMBERS = new Set([
  "max_train_steps", "learning_rate", "rank", "alpha", "train_batch_size", "gradient_accumulation_steps",
  "resolution", "seed", "sample_every_steps", "sample_inference_steps", "sample_guidance_scale",
  "lr_warmup_steps", "weight_decay", "max_grad_norm", "caption_dropout", "snr_gamma",
]);
const FLAGS = new Set(["flip"]);
const LISTS = new Set(["sample_prompts"]);
const OUTSIDE = new Set(["dataset_id", "base_model_id", "title", "then"]);

const form = document.getElementById("training-form");
const review = document.getElementById("review");
const picker = form.querySelector("model-picker");
let timer = 0;

function askReview() {
  clearTimeout(timer);
  timer = setTimeout(() => htmx.trigger(review, "review"), REVIEW_MS);
}

/** Show the resolved values as the defaults of the fields that were left empty. */
function showDefaults() {
  const facts = review.querySelector("[data-resolved]");
  if (!facts) return;
  const resolved = JSON.parse(facts.dataset.resolved);
  for (const [name, value] of Object.entries(resolved)) {
    const field = form.elements[name];
    if (!field || field instanceof RadioNodeList) continue;
    if (field.tagName === "SELECT") {
      const chosen = [...field.options].find((option) => option.value === String(value));
      field.options[0].textContent = chosen ? interpolate(gettext("%s (preset)"), [chosen.textContent]) : gettext("As the preset says");
    } else if (name !== "trigger_word") field.placeholder = Array.isArray(value) ? value.join("\n") : String(value);
  }
}

function settingOf(name, text) {
  if (NUMBERS.has(name)) return Number.isNaN(Number(text.replace(",", "."))) ? text : Number(text.replace(",", "."));
  if (FLAGS.has(name)) return text === "true";
  if (LISTS.has(name)) return text.split("\n").map((line) => line.trim()).filter(Boolean);
  return text;
}

function bodyOf() {
  const config = {};
  for (const [name, text] of new FormData(form)) {
    if (OUTSIDE.has(name) || text.trim() === "") continue;
    config[name] = settingOf(name, text.trim());
  }
  const values = new FormData(form);
  const dataset = values.get("dataset_id") || document.getElementById("other-dataset")?.value;
  return {
    dataset_id: dataset ? Number(dataset) : null,
    base_model_id: values.get("base_model_id") ? Number(values.get("base_model_id")) : null,
    type: "lora",
    title: values.get("title") ?? "",
    config,
  };
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
  if (event.target === review) showDefaults();
});
askReview();
