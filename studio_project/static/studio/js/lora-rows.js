/** The LoRAs of a request: each a picker and a slider for how strongly it acts. */

import { h, icon } from "./dom.js";
import { number } from "./format.js";

const LEAST = -1;
const MOST = 2;

/** Put a weight on its slider; one that came from elsewhere may lie outside of what people usually want. */
export function setRange(range, value) {
  range.min = String(Math.min(LEAST, value));
  range.max = String(Math.max(MOST, value));
  range.value = String(value);
}

export class LoraRows {
  constructor(list, add, onChanged) {
    this.list = list;
    this.onChanged = onChanged;
    add.addEventListener("click", () => this.add());
  }

  get count() {
    return this.list.children.length;
  }

  /** @param {{id: number, weight: number}|null} lora */
  add(lora = null) {
    const value = lora?.weight ?? 1;
    const weight = h("input", { type: "range", step: "0.05", "aria-label": gettext("Weight") });
    setRange(weight, value);
    const output = h("output", {}, number(value, 2));
    weight.addEventListener("input", () => (output.textContent = number(Number(weight.value), 2)));
    const picker = h("model-picker", { adapters: "", label: gettext("LoRA"), name: "", "no-default": !lora, value: lora ? String(lora.id) : null });
    const remove = h("button", { type: "button", class: "quiet small", "aria-label": gettext("Remove this LoRA"), on: { click: () => { row.remove(); this.onChanged(); } } }, icon("x"));
    const row = h("li", {}, picker, h("div", { class: "slider" }, weight, output, remove));
    this.list.append(row);
    this.onChanged();
  }

  clear() {
    this.list.replaceChildren();
  }

  fill(loras) {
    this.clear();
    for (const lora of loras) this.add(lora);
  }

  chosen() {
    return [...this.list.children]
      .map((row) => ({ model: Number(row.querySelector("model-picker").value), weight: Number(row.querySelector("input[type=range]").value) }))
      .filter((lora) => lora.model);
  }
}
