/**
 * `<model-picker>`: a combobox of models with picture, type, base and trigger word.
 *
 * Attributes: `name` (of the hidden field), `value` (an id), `types` (base_model, lora, …; empty for
 * all), `adapters` (only what is used on top of a base model), `architectures` (those that may be chosen), `category` (image),
 * `inpainting` (what paints parts of pictures only is offered too; may change), `label`, `input-id`.
 * Fires `change` when another model is chosen; `.model` is the chosen one.
 *
 * Long lists are searched by the API while one types. Models come and go live. One that cannot be
 * used stands in the list, disabled, with the reason and the command that brings it.
 */

import { api } from "./api.js";
import { announce, h, icon } from "./dom.js";
import { on, watch } from "./live.js";
import { MODEL_EVENTS } from "./model-news.js";
import { placeBeside } from "./popover.js";
import { architectureWord, typeWord } from "./words.js";

const PAGE = 50;
const TYPING_MS = 200;
let instances = 0;

class ModelPicker extends HTMLElement {
  static observedAttributes = ["inpainting"];

  connectedCallback() {
    if (this.input) return;
    this.ids = `picker-${(instances += 1)}`;
    this.models = new Map();
    this.shown = [];
    this.active = -1;
    this.model = null;
    this.hasMore = false;
    this.build();
    this.stops = [
      on(MODEL_EVENTS, (event) => this.changed(event)),
      watch(() => this.refresh()),
    ];
    this.refresh().then(() => this.restore());
  }

  /** What is not offered any more gives way to what was chosen before it. */
  attributeChangedCallback() {
    if (!this.model || this.isOffered(this.model)) return;
    this.model = null;
    this.hidden_.value = "";
    if (this.whole) this.select(this.whole);
    else this.restore();
  }

  disconnectedCallback() {
    for (const stop of this.stops ?? []) stop();
  }

  get value() {
    return this.hidden_.value;
  }

  /** Choose a model by id; it is fetched when the list does not have it. */
  async choose(id, { quietly = false } = {}) {
    let model = this.models.get(Number(id));
    if (!model) {
      try {
        model = await api(`/api/models/${id}`);
      } catch {
        return false;
      }
    }
    if (!this.isWanted(model) || this.whyNot(model)) return false;
    this.models.set(model.id, model);
    this.select(model, { quietly });
    return true;
  }

  // --- parts --------------------------------------------------------------------------------
  build() {
    const id = this.getAttribute("input-id") ?? `${this.ids}-input`;
    this.hidden_ = h("input", { type: "hidden", name: this.getAttribute("name") ?? "model", value: "" });
    this.input = h("input", {
      id,
      type: "text",
      role: "combobox",
      autocomplete: "off",
      spellcheck: "false",
      "aria-expanded": "false",
      "aria-controls": `${this.ids}-list`,
      "aria-autocomplete": "list",
      "aria-label": this.getAttribute("label") ?? gettext("Model"),
      "aria-describedby": `${this.ids}-about`,
      placeholder: gettext("Search a model"),
    });
    this.face = h("span", { class: "face" }, icon("boxes"));
    this.about = h("span", { class: "meta", id: `${this.ids}-about` });
    this.list = h("div", { class: "picker-list", id: `${this.ids}-list`, role: "listbox", "aria-label": this.getAttribute("label") ?? gettext("Model"), popover: "manual" });
    this.box = h("div", { class: "picker-box" }, this.face, this.input, icon("chevron-down"), this.about);
    this.append(this.hidden_, this.box, this.list);
    this.place = () => placeBeside(this.box, this.list);
    this.box.addEventListener("mousedown", (event) => {
      if (event.target !== this.input) event.preventDefault();
      this.input.focus();
      if (!this.isOpen) this.open();
    });
    this.input.addEventListener("focus", () => this.input.select());
    this.input.addEventListener("input", () => this.typed());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => this.close());
    this.list.addEventListener("mousedown", (event) => event.preventDefault());
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.take(Number(option.dataset.index));
    });
  }

  // --- data ---------------------------------------------------------------------------------
  query(extra) {
    const parameters = new URLSearchParams({ limit: PAGE, category: this.getAttribute("category") ?? "image", ...extra });
    for (const type of this.wantedTypes()) if (!("type" in extra)) parameters.append("type", type);
    if (this.wantsAdapters) parameters.append("is_adapter", "true");
    return `/api/models/?${parameters}`;
  }

  wantedTypes() {
    return (this.getAttribute("types") ?? "").split(" ").filter(Boolean);
  }

  get wantsAdapters() {
    return this.hasAttribute("adapters");
  }

  isWanted(model) {
    const wants = this.wantedTypes();
    return model.category === (this.getAttribute("category") ?? "image") && (!wants.length || wants.includes(model.type)) && (!this.wantsAdapters || model.is_adapter);
  }

  isOffered(model) {
    return !model.is_inpainting || this.hasAttribute("inpainting");
  }

  /** The first page of each group, so that base models are there however many LoRAs came later. */
  async refresh() {
    const wants = this.wantedTypes();
    const lists = this.wantsAdapters ? [] : [this.query({ type: "base_model" })];
    if (!wants.length || wants.some((type) => type !== "base_model")) {
      lists.push(this.query({ owner: "me" }), this.query({ visibility: "shared" }));
    }
    try {
      const pages = await Promise.all(lists.map((list) => api(list)));
      this.models = new Map(pages.flatMap((page) => page.results).map((model) => [model.id, model]));
      this.hasMore = pages.some((page) => page.next);
      this.failed = false;
    } catch {
      this.failed = true;
    }
    this.refreshChosen();
    if (this.isOpen) this.render();
  }

  refreshChosen() {
    if (!this.model) return;
    const fresh = this.models.get(this.model.id);
    if (fresh) this.show(fresh);
  }

  /** Choose what the page asks for, else the first that can be used. */
  async restore() {
    const wanted = this.getAttribute("value");
    if (this.model || (wanted && (await this.choose(wanted, { quietly: true })))) return;
    if (this.hasAttribute("no-default")) return;
    const first = this.ordered([...this.models.values()]).find((model) => !this.whyNot(model));
    if (first) this.select(first, { quietly: true });
    else this.show(null);
  }

  /** A model came, changed or went: ask for that one, whatever the event says. */
  async changed(event) {
    let model = null;
    try {
      model = await api(`/api/models/${event.id}`);
    } catch (problem) {
      if (problem.status !== 404) return;
    }
    const fits = model && this.isWanted(model);
    if (fits) this.models.set(model.id, model);
    else this.models.delete(Number(event.id));
    if (this.model && this.model.id === Number(event.id)) {
      if (fits && !this.whyNot(model)) this.show(model);
      else this.lost(model);
    } else if (!this.model && fits && !this.whyNot(model)) this.select(model);
    if (this.isOpen) this.render();
    this.dispatchEvent(new CustomEvent("models", { detail: { size: this.models.size } }));
  }

  /** The chosen model cannot be used any more: say so, choose nothing in its place. */
  lost(model) {
    const name = this.model.title || this.model.name;
    this.model = null;
    this.hidden_.value = "";
    this.show(null);
    const text = model ? this.whyNot(model) : interpolate(gettext("“%s” is no longer available."), [name]);
    this.about.replaceChildren(text);
    announce(text);
    this.dispatchEvent(new Event("change", { bubbles: true }));
  }

  whyNot(model) {
    if (!this.isOffered(model)) return gettext("It paints parts of pictures only.");
    const families = (this.getAttribute("architectures") ?? "").split(" ").filter(Boolean);
    if (families.length && !families.includes(model.architecture)) return gettext("Models of this family cannot be trained here yet.");
    if (model.usable === false || model.availability_detail) return model.availability_detail || gettext("It cannot be used at the moment.");
    return "";
  }

  // --- choosing -----------------------------------------------------------------------------
  select(model, { quietly = false } = {}) {
    const other = this.model?.id !== model.id;
    this.model = model;
    if (!model.is_inpainting) this.whole = model;
    this.hidden_.value = String(model.id);
    this.show(model);
    if (other) this.dispatchEvent(new CustomEvent("change", { bubbles: true, detail: { quietly } }));
  }

  show(model) {
    if (model) this.model = model;
    if (document.activeElement !== this.input || !this.isOpen) this.input.value = model ? model.title || model.name : "";
    this.face.replaceChildren(this.picture(model));
    this.about.replaceChildren(...(model ? this.words(model) : [gettext("No model is chosen")]));
  }

  picture(model) {
    if (model?.thumbnail_url) return h("img", { src: model.thumbnail_url, alt: "", width: 44, height: 44 });
    return icon(model?.type === "base_model" ? "layers" : "boxes");
  }

  words(model) {
    const parts = [typeWord(model.type)];
    parts.push(model.base_model ? model.base_model_title : architectureWord(model.architecture));
    if (model.is_inpainting) parts.push(gettext("for parts of pictures"));
    if (model.trigger_words?.length) parts.push(model.trigger_words.join(", "));
    return parts.filter(Boolean).map((part, index) => h("span", { class: index === 1 ? "clip" : null }, part));
  }

  // --- the list -----------------------------------------------------------------------------
  get isOpen() {
    return this.list.matches(":popover-open");
  }

  open() {
    this.list.showPopover();
    this.place();
    addEventListener("scroll", this.place, { capture: true, passive: true });
    addEventListener("resize", this.place);
    this.input.setAttribute("aria-expanded", "true");
    this.found = null;
    this.render();
    this.move(this.shown.findIndex((model) => model.id === this.model?.id));
  }

  close() {
    if (this.isOpen) this.list.hidePopover();
    removeEventListener("scroll", this.place, { capture: true });
    removeEventListener("resize", this.place);
    this.active = -1;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.input.value = this.model ? this.model.title || this.model.name : "";
  }

  typed() {
    if (!this.isOpen) this.open();
    clearTimeout(this.timer);
    const words = this.input.value.trim();
    this.found = words ? this.here(words) : null;
    this.render();
    this.move(this.shown.findIndex((model) => !this.whyNot(model)));
    if (words) this.timer = setTimeout(() => this.search(words), TYPING_MS);
  }

  /** What is already here answers at once. */
  here(words) {
    const wanted = words.toLocaleLowerCase().split(/\s+/);
    return [...this.models.values()].filter((model) => {
      const text = [model.title, model.name, ...(model.trigger_words ?? [])].join(" ").toLocaleLowerCase();
      return wanted.every((word) => text.includes(word));
    });
  }

  async search(words) {
    let page;
    try {
      page = await api(this.query({ search: words }));
    } catch {
      return;
    }
    if (this.input.value.trim() !== words || !this.isOpen) return;
    const before = this.shown[this.active]?.id;
    this.found = page.results;
    this.render();
    const kept = this.shown.findIndex((model) => model.id === before);
    this.move(kept >= 0 ? kept : this.shown.findIndex((model) => !this.whyNot(model)));
    announce(interpolate(ngettext("%s model found", "%s models found", this.shown.length), [this.shown.length]));
  }

  group(model) {
    if (model.type === "base_model") return "base";
    return model.owner && model.owner === document.documentElement.dataset.username ? "mine" : "shared";
  }

  ordered(models) {
    const rank = { mine: 0, shared: 1, base: 2 };
    return models.sort((a, b) => rank[this.group(a)] - rank[this.group(b)] || Boolean(this.whyNot(a)) - Boolean(this.whyNot(b)) || (a.created_at < b.created_at ? 1 : -1));
  }

  render() {
    const names = { mine: gettext("Mine"), shared: gettext("Shared"), base: gettext("Base models") };
    this.shown = this.ordered((this.found ?? [...this.models.values()]).filter((model) => this.isOffered(model)));
    const groups = new Map();
    this.shown.forEach((model, index) => {
      const key = this.group(model);
      if (!groups.has(key)) {
        const title = h("div", { class: "group-name", role: "presentation" }, names[key]);
        groups.set(key, h("div", { role: "group", "aria-label": names[key] }, title));
      }
      groups.get(key).append(this.option(model, index));
    });
    const parts = [...groups.values()];
    if (this.failed) parts.push(h("div", { class: "nothing" }, gettext("The models could not be loaded."), " ", h("button", { type: "button", class: "secondary small", on: { click: () => this.refresh() } }, gettext("Try again"))));
    else if (!parts.length) parts.push(h("div", { class: "nothing" }, this.found ? gettext("No model has these words.") : gettext("There is no model yet.")));
    else if (this.hasMore && !this.found) parts.push(h("div", { class: "nothing" }, gettext("There are more: type to search.")));
    this.list.replaceChildren(...parts);
  }

  option(model, index) {
    const why = this.whyNot(model);
    return h(
      "div",
      { role: "option", id: `${this.ids}-${index}`, "aria-selected": String(model.id === this.model?.id), "aria-disabled": why ? "true" : null, dataset: { index, id: model.id } },
      h("span", { class: "face" }, this.picture(model)),
      h("span", { class: "clip" }, model.title || model.name),
      model.id === this.model?.id ? icon("check") : h("span"),
      why ? h("span", { class: "why" }, why) : h("span", { class: "meta" }, ...this.words(model)),
    );
  }

  move(index) {
    this.list.querySelector(".active")?.classList.remove("active");
    this.active = this.shown.length ? Math.max(-1, Math.min(index, this.shown.length - 1)) : -1;
    const option = this.list.querySelector(`#${this.ids}-${this.active}`);
    if (!option) {
      this.input.removeAttribute("aria-activedescendant");
      return;
    }
    option.classList.add("active");
    option.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", option.id);
  }

  take(index) {
    const model = this.shown[index];
    if (!model) return;
    const why = this.whyNot(model);
    if (why) {
      announce(why);
      return;
    }
    this.models.set(model.id, model);
    this.select(model);
    this.close();
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
    if (event.key in steps) {
      event.preventDefault();
      if (!this.isOpen) this.open();
      else this.move(Math.max(0, this.active + steps[event.key]));
    } else if (event.key === "Home" && this.isOpen && event.ctrlKey) this.move(0);
    else if (event.key === "End" && this.isOpen && event.ctrlKey) this.move(this.shown.length - 1);
    else if (event.key === "Enter" && this.isOpen) {
      event.preventDefault();
      if (!event.ctrlKey) this.take(this.active);
    } else if (event.key === "Escape" && this.isOpen) {
      event.preventDefault();
      this.close();
      this.input.select();
    } else if (event.key === "Tab") this.close();
  }
}

customElements.define("model-picker", ModelPicker);
