/** The form of the generate page: model defaults, summaries of folded groups, LoRAs, reuse. */

import { h, icon } from "./dom.js";
import { number } from "./format.js";
import "./model-picker.js";

const NUMBERS = ["width", "height", "num_images", "num_inference_steps", "guidance_scale", "seed", "clip_skip"];
const KEPT = "studio.generate";

export class GenerateForm {
  constructor(element, { defaults }) {
    this.element = element;
    this.defaults = defaults;
    this.touched = new Set();
    this.picker = element.querySelector("model-picker");
    this.loras = element.querySelector("#loras");
    this.recall();
    element.addEventListener("input", (event) => this.changed(event.target.name));
    element.addEventListener("change", (event) => {
      if (event.target === this.picker) this.modelChanged();
      else this.changed(event.target.name);
    });
    element.addEventListener("reset", (event) => {
      event.preventDefault();
      this.reset();
    });
    element.querySelector("#random-seed").addEventListener("click", () => this.set("seed", ""));
    element.querySelector("#add-lora").addEventListener("click", () => this.addLora());
    this.modelChanged();
  }

  get fields() {
    return this.element.elements;
  }

  get model() {
    return this.picker.model;
  }

  changed(name) {
    if (name) this.touched.add(name);
    this.summarise();
    this.keep();
  }

  set(name, value) {
    const field = this.fields[name];
    if (!field) return;
    field.value = value === null || value === undefined ? "" : String(value);
    this.changed(name);
  }

  /** Values nobody touched follow the model. */
  modelChanged() {
    const model = this.model;
    if (!model && this.fields.width.value) {
      this.offerTriggerWords();
      return;
    }
    const values = { ...(this.defaults[model?.architecture] ?? Object.values(this.defaults)[0]), ...(model?.default_settings ?? {}) };
    for (const [name, value] of Object.entries(values)) {
      if (this.fields[name] && !this.touched.has(name)) this.fields[name].value = String(value);
    }
    this.offerTriggerWords();
    this.summarise();
    this.keep();
  }

  reset() {
    this.touched.clear();
    this.fields.negative_prompt.value = "";
    this.fields.seed.value = "";
    this.loras.replaceChildren();
    this.modelChanged();
  }

  offerTriggerWords() {
    const place = this.element.querySelector("#trigger-words");
    const words = this.model?.trigger_words ?? [];
    place.hidden = !words.length;
    place.replaceChildren(
      ...words.map((word) =>
        h("button", { type: "button", class: "chip", on: { click: () => this.insert(word) } }, icon("plus"), word),
      ),
    );
  }

  /** Put a word at the front of the prompt, where training had it. */
  insert(word) {
    const prompt = this.fields.prompt;
    if (!prompt.value.includes(word)) prompt.value = prompt.value ? `${word}, ${prompt.value}` : word;
    prompt.focus();
    this.changed("prompt");
  }

  addLora(chosen = null) {
    const weight = h("input", { type: "number", min: "-4", max: "4", step: "0.1", value: String(chosen?.weight ?? 1), "aria-label": gettext("Weight") });
    const picker = h("model-picker", { types: "lora", label: gettext("LoRA"), name: "", "no-default": !chosen, value: chosen ? String(chosen.id) : null });
    const remove = h("button", { type: "button", class: "quiet small", "aria-label": gettext("Remove this LoRA"), on: { click: () => { row.remove(); this.changed("loras"); } } }, icon("x"));
    const row = h("li", {}, picker, h("div", { class: "with-button" }, weight, remove));
    this.loras.append(row);
    this.changed("loras");
  }

  chosenLoras() {
    return [...this.loras.children]
      .map((row) => ({ model: Number(row.querySelector("model-picker").value), weight: Number(row.querySelector("input[type=number]").value) }))
      .filter((lora) => lora.model);
  }

  summarise() {
    const value = (name) => this.fields[name].value;
    const sums = {
      size: `${value("width")} × ${value("height")} · ${interpolate(ngettext("%s picture", "%s pictures", Number(value("num_images"))), [value("num_images")])}`,
      quality: `${interpolate(ngettext("%s step", "%s steps", Number(value("num_inference_steps"))), [value("num_inference_steps")])} · ${number(Number(value("guidance_scale")), 1)} · ${this.fields.scheduler.selectedOptions[0]?.textContent ?? ""}`,
      advanced: `${value("seed") ? interpolate(gettext("seed %s"), [value("seed")]) : gettext("random seed")}${this.loras.children.length ? ` · ${this.loras.children.length} LoRA` : ""}`,
    };
    for (const [name, text] of Object.entries(sums)) this.element.querySelector(`[data-sum=${name}]`).textContent = text;
  }

  body() {
    const body = { model: Number(this.picker.value) || "", prompt: this.fields.prompt.value, negative_prompt: this.fields.negative_prompt.value, scheduler: this.fields.scheduler.value };
    for (const name of NUMBERS) if (this.fields[name].value.trim() !== "") body[name] = Number(this.fields[name].value);
    const loras = this.chosenLoras();
    if (loras.length) body.loras = loras;
    return body;
  }

  /** Take over everything a picture or a job was painted with. */
  async reuse(picture, { seed = true } = {}) {
    const given = picture.parameters ?? picture;
    const model = picture.model?.id;
    if (model) await this.picker.choose(model);
    for (const name of ["prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "scheduler", "clip_skip"]) {
      if (given[name] !== undefined) this.set(name, given[name]);
    }
    if (seed) this.set("seed", picture.seed ?? given.seed);
    this.loras.replaceChildren();
    for (const lora of given.loras ?? []) if (lora.id && lora.id !== model) this.addLora(lora);
    this.summarise();
  }

  // --- what stays between visits --------------------------------------------------------------
  keep() {
    const values = {};
    for (const name of this.touched) if (this.fields[name]) values[name] = this.fields[name].value;
    values.prompt = this.fields.prompt.value;
    sessionStorage.setItem(KEPT, JSON.stringify(values));
  }

  recall() {
    const values = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
    for (const [name, value] of Object.entries(values)) {
      if (!this.fields[name]) continue;
      this.fields[name].value = value;
      if (name !== "prompt") this.touched.add(name);
    }
  }
}
