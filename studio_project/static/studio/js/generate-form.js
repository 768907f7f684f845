/** The form of the generate page: modes, model defaults, summaries of folded groups, LoRAs, reuse. */

import { required } from "./api.js";
import { clearProblems } from "./api-form.js";
import { h, icon } from "./dom.js";
import { number } from "./format.js";
import { LoraRows, setRange } from "./lora-rows.js";
import "./model-picker.js";
import { PictureSource } from "./picture-source.js";
import { Shape } from "./shape.js";

const KEPT = "studio.generate";
const WORDS = new Set(["prompt", "negative_prompt", "seed", "model"]);
const FROM_PICTURE = new Set(["image-to-image", "inpaint", "image-to-video"]);

const valueOf = (field) => (field.type === "checkbox" ? field.checked : field.value);

function fillIn(field, value) {
  if (field.type === "checkbox") field.checked = Boolean(value);
  else field.value = String(value ?? "");
}

export class GenerateForm {
  /** @param {{defaults: Object, mode: string, start: Object|null, onChanged: Function}} given */
  constructor(element, { defaults, mode, start, onChanged }) {
    this.element = element;
    this.onChanged = onChanged;
    this.defaults = defaults;
    this.touched = new Set();
    this.mode = "text-to-image";
    this.loras = new LoraRows(element.querySelector("#loras"), element.querySelector("#add-lora"), () => this.changed("loras"));
    this.source = new PictureSource(element.querySelector("#source"), {
      onChanged: () => this.sourceChanged(),
      onSettings: (recalled) => this.fill(recalled),
    });
    this.hires = element.querySelector("#hires");
    this.weight = element.querySelector("#model-weight");
    this.shape = new Shape({
      select: element.querySelector("#shape"),
      fields: this.fields,
      defaults: () => this.modelDefaults(),
      onChosen: (width, height) => {
        this.set("width", width);
        this.set("height", height);
      },
    });
    this.recall();
    element.addEventListener("input", (event) => this.changed(event.target.name));
    element.addEventListener("change", (event) => {
      if (event.target === this.picker) {
        this.setWeight(1);
        this.modelChanged();
      }
      else this.changed(event.target.name);
    });
    element.addEventListener("reset", (event) => {
      event.preventDefault();
      this.reset();
    });
    element.querySelector("#random-seed").addEventListener("click", () => this.set("seed", ""));
    for (const button of element.querySelectorAll("[data-mode]")) button.addEventListener("click", () => this.choose(button.dataset.mode));
    this.choose(mode || this.mode);
    if (start) this.source.show(start);
  }

  get fields() {
    return this.element.elements;
  }

  get picker() {
    return this.element.querySelector("[data-modes]:not([hidden]) > model-picker");
  }

  get model() {
    return this.picker.model;
  }

  // --- modes ----------------------------------------------------------------------------------
  /** Show what a mode takes, and nothing else. */
  choose(mode) {
    if (!this.element.querySelector(`[data-mode="${CSS.escape(mode)}"]`)) return;
    this.exchange(mode);
    this.mode = mode;
    for (const part of this.element.querySelectorAll("[data-modes]")) part.hidden = !part.dataset.modes.split(" ").includes(mode);
    // The easel may stand in its dialog.
    document.getElementById("mask").hidden = mode !== "inpaint";
    for (const button of this.element.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    // A base that paints parts only needs a mask.
    this.picker.toggleAttribute("inpainting", mode === "inpaint");
    this.modelChanged();
    this.sourceChanged();
  }

  /** Sizes and steps of clips mean nothing for pictures: each kind keeps what was chosen for it. */
  exchange(mode) {
    const kinds = [this.mode, mode].map((name) => name === "image-to-video");
    if (kinds[0] === kinds[1]) return;
    const kept = [...this.touched].filter((name) => this.fields[name] && !WORDS.has(name));
    const before = this.other ?? {};
    this.other = Object.fromEntries(kept.map((name) => [name, valueOf(this.fields[name])]));
    for (const name of kept) this.touched.delete(name);
    for (const [name, value] of Object.entries(before)) {
      fillIn(this.fields[name], value);
      this.touched.add(name);
    }
  }

  /** Start from a picture that the site has. */
  startFrom(mode, picture) {
    this.choose(mode);
    this.source.show(picture);
    this.element.scrollIntoView({ block: "start", behavior: "smooth" });
  }

  /** The size follows the picture unless somebody has chosen one. */
  sourceChanged() {
    const follows = FROM_PICTURE.has(this.mode) && this.source.picture;
    for (const name of ["width", "height"]) {
      if (this.touched.has(name)) continue;
      this.fields[name].placeholder = follows ? gettext("like the picture") : "";
      if (follows) this.fields[name].value = "";
    }
    if (!follows) this.modelChanged();
    else this.summarise();
  }

  isAway(field) {
    return Boolean(field.closest("[data-modes][hidden]")) || (!this.hires.checked && Boolean(field.closest("#hires-fields")));
  }

  // --- values ---------------------------------------------------------------------------------
  changed(name) {
    if (name) this.touched.add(name);
    if (name === "prompt") this.offerTriggerWords();
    this.summarise();
    this.keep();
  }

  set(name, value) {
    const field = this.fields[name];
    if (!field) return;
    fillIn(field, value);
    this.changed(name);
  }

  /** What the chosen model is best at. */
  modelDefaults() {
    const family = this.mode === "image-to-video" ? "svd" : "sd1";
    return { ...(this.defaults[this.model?.architecture] ?? this.defaults[family]), ...(this.model?.default_settings ?? {}) };
  }

  /** Values nobody touched follow the model. */
  modelChanged() {
    const model = this.model;
    if (model || !this.fields.num_inference_steps.value) {
      const values = this.modelDefaults();
      const follows = FROM_PICTURE.has(this.mode) && this.source.picture;
      for (const [name, value] of Object.entries(values)) {
        if (follows && (name === "width" || name === "height")) continue;
        if (this.fields[name] && !this.touched.has(name)) this.fields[name].value = String(value);
      }
    }
    this.weight.closest(".field").hidden = !this.model?.is_adapter;
    this.offerTriggerWords();
    this.summarise();
    this.keep();
  }

  /** How strongly the chosen model acts when it is a LoRA itself. */
  setWeight(value) {
    setRange(this.weight, value);
  }

  reset() {
    clearProblems(this.element);
    this.touched.clear();
    this.setWeight(1);
    this.fields.negative_prompt.value = "";
    this.fields.seed.value = "";
    this.hires.checked = this.fields.run_alone.checked = false;
    this.loras.clear();
    this.modelChanged();
    this.sourceChanged();
  }

  offerTriggerWords() {
    const place = this.element.querySelector("#trigger-words");
    const words = this.model?.trigger_words ?? [];
    place.hidden = !words.length;
    place.replaceChildren(
      ...words.map((word) =>
        h("button", { type: "button", class: "chip", on: { click: () => this.insert(word) } }, icon(this.fields.prompt.value.includes(word) ? "check" : "plus"), word),
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

  summarise() {
    const value = (name) => this.fields[name].value;
    const steps = interpolate(ngettext("%s step", "%s steps", Number(value("num_inference_steps"))), [value("num_inference_steps")]);
    const isVideo = this.mode === "image-to-video";
    const size = value("width") && value("height") ? `${value("width")} × ${value("height")}` : isVideo ? "" : gettext("like the picture");
    const count = isVideo ? interpolate(ngettext("%s frame", "%s frames", Number(value("num_frames"))), [value("num_frames")]) : interpolate(ngettext("%s picture", "%s pictures", Number(value("num_images"))), [value("num_images")]);
    const larger = this.hires.checked && this.mode === "text-to-image" ? ` · ${value("hires_scale")} ×` : "";
    const sums = {
      size: [size, count].filter(Boolean).join(" · "),
      quality: isVideo ? steps : `${steps} · ${number(Number(value("guidance_scale")), 1)} · ${this.fields.scheduler.selectedOptions[0]?.textContent ?? ""}${larger}`,
      advanced: [
        value("seed") ? interpolate(gettext("seed %s"), [value("seed")]) : gettext("random seed"),
        this.loras.count && !isVideo ? `${this.loras.count} LoRA` : "",
        this.fields.run_alone.checked && this.mode === "text-to-image" ? gettext("by itself") : "",
      ].filter(Boolean).join(" · "),
    };
    for (const [name, text] of Object.entries(sums)) this.element.querySelector(`[data-sum=${name}]`).textContent = text;
    for (const output of this.element.querySelectorAll("output[data-of]")) {
      const field = this.fields[output.dataset.of];
      output.textContent = number(Number(field.value), (field.step.split(".")[1] ?? "").length);
    }
    this.element.querySelector("#hires-fields").hidden = !this.hires.checked;
    this.shape.show();
    this.onChanged();
  }

  /** Whether the site can say how long it would take: a request without a model or a picture it would refuse. */
  get isForetold() {
    return Boolean(this.model) && this.element.checkValidity() && (!FROM_PICTURE.has(this.mode) || Boolean(this.source.picture));
  }

  /**
   * The request as it is sent, after what it starts from was sent.
   * @param {{masked: boolean}} options without the mask for an estimate, which needs none
   * @throws {Problem}
   */
  async body({ masked = this.mode === "inpaint" } = {}) {
    if (!this.picker.value) throw required("model", gettext("Choose a model."));
    const body = { model: Number(this.picker.value) };
    for (const field of this.fields) {
      if (!field.name || field.name === "model" || this.isAway(field)) continue;
      if (field.type === "checkbox") {
        if (field.checked) body[field.name] = true;
      } else if (!("number" in field.dataset)) body[field.name] = field.value;
      else if (field.value.trim() !== "") body[field.name] = Number(field.value);
    }
    const loras = this.loras.chosen();
    if (this.model?.is_adapter && this.weight.valueAsNumber !== 1) loras.unshift({ model: this.model.id, weight: this.weight.valueAsNumber });
    if (loras.length && this.mode !== "image-to-video") body.loras = loras;
    if (FROM_PICTURE.has(this.mode)) Object.assign(body, await this.source.references(masked));
    return body;
  }

  // --- reuse ----------------------------------------------------------------------------------
  /** Take over everything a picture or a job was made with, the picture it started from included. */
  async reuse(job, { seed = true } = {}) {
    const given = job.parameters ?? job;
    this.choose(job.mode ?? given.mode ?? "text-to-image");
    const model = job.model?.id;
    if (model) await this.picker.choose(model);
    for (const field of this.fields) {
      if (!field.name || ["model", "seed", "num_images"].includes(field.name)) continue;
      if (given[field.name] !== undefined && given[field.name] !== null) this.set(field.name, given[field.name]);
    }
    this.hires.checked = (given.hires_scale ?? 1) > 1;
    if (!this.hires.checked) this.touched.delete("hires_scale");
    if (seed) this.set("seed", job.seed ?? given.seed);
    const loras = given.loras ?? [];
    this.setWeight(loras.find((lora) => lora.id === model)?.weight ?? 1);
    this.loras.fill(loras.filter((lora) => lora.id && lora.id !== model));
    if (job.image) {
      this.source.show({ reference: { upload_id: job.image.id }, ...job.image });
      if (job.mask_image) await this.source.mask.load(job.mask_image.url, job.mask_image.id);
    }
    this.modelChanged();
  }

  reusePrompt(job) {
    this.set("prompt", job.prompt ?? "");
    this.set("negative_prompt", job.negative_prompt ?? "");
  }

  /** Fill in what a file or a pasted text says. @returns {string} what could not be filled in */
  async fill(recalled) {
    const { values, model, loras, missing } = recalled;
    if (model) await this.picker.choose(model.id);
    for (const [name, value] of Object.entries(values)) this.set(name, value);
    this.hires.checked = (values.hires_scale ?? 1) > 1;
    this.loras.fill(loras.map((lora) => ({ id: lora.model, weight: lora.weight })));
    this.modelChanged();
    return missing.map((entry) => entry.name).join(", ");
  }

  // --- what stays between visits --------------------------------------------------------------
  keep() {
    const values = {};
    for (const name of this.touched) if (this.fields[name] && name !== "model") values[name] = valueOf(this.fields[name]);
    values.prompt = this.fields.prompt.value;
    sessionStorage.setItem(KEPT, JSON.stringify({ values, mode: this.mode, hires: this.hires.checked }));
  }

  recall() {
    const { values = {}, mode, hires = false } = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
    for (const [name, value] of Object.entries(values)) {
      if (!this.fields[name]) continue;
      fillIn(this.fields[name], value);
      if (name !== "prompt") this.touched.add(name);
    }
    this.hires.checked = hires;
    if (mode) this.mode = mode;
  }
}
