/** Tells every page when a model becomes usable, or goes; lists of models fetch themselves again. */

import { api } from "./api.js";
import { on } from "./live.js";
import { toast } from "./toast.js";

export const MODEL_EVENTS = ["diffusion_model.registered", "diffusion_model.changed", "diffusion_model.deleted"];

/** Toast “… is ready”, with the link that opens the generate page with it chosen. */
async function announceModel(event) {
  let model;
  try {
    model = await api(`/api/models/${event.id}`);
  } catch {
    return;
  }
  if (!model.is_active || model.availability !== "ready") return;
  const name = model.title || model.name;
  toast(interpolate(gettext("“%s” is ready."), [name]), {
    kind: "good",
    ms: 20000,
    link: { href: `/text-to-image?model=${model.id}${model.is_inpainting ? "&mode=inpaint" : ""}`, label: gettext("Use it now") },
  });
}

export function wireModelNews() {
  on(["diffusion_model.registered"], announceModel);
  let timer = 0;
  on(MODEL_EVENTS, () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      for (const list of document.querySelectorAll("[data-models-list]")) htmx.trigger(list, "refresh");
    }, 250);
  });
}
