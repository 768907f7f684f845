/** The large picture of the generate page, forming or chosen, and the parameters beside it. */

import { api } from "./api.js";
import { confirmAction } from "./dialog.js";
import { h } from "./dom.js";
import { number } from "./format.js";
import { toastProblem } from "./toast.js";
import { FINAL, stateWords } from "./words.js";

export class Stage {
  constructor({ form, schedulers, onDeleted, onSubmitted }) {
    Object.assign(this, { form, schedulers, onDeleted, onSubmitted });
    this.place = document.getElementById("stage");
    this.line = document.getElementById("stage-line");
    this.panel = document.getElementById("parameters");
    this.empty = document.getElementById("stage-empty");
    this.job = null;
    this.image = null;
    this.following = null;
    document.getElementById("reuse").addEventListener("click", () => this.form.reuse(this.whole()));
    document.getElementById("reuse-prompt").addEventListener("click", () => this.form.reusePrompt(this.whole()));
    document.getElementById("make-again").addEventListener("click", (event) => this.again(event.currentTarget));
    for (const button of this.panel.querySelectorAll("[data-start]")) button.addEventListener("click", () => this.startFrom(button.dataset.start));
    document.getElementById("reuse-seed").addEventListener("click", () => this.form.set("seed", this.image.seed));
    document.getElementById("delete-image").addEventListener("click", () => this.remove());
  }

  /** Watch a job that was just sent: its previews, then its first picture. */
  follow(job) {
    this.following = job.id;
    this.show(job, null);
    // On a small screen the stage lies below the form.
    if (this.place.getBoundingClientRect().top > innerHeight / 2) this.place.scrollIntoView({ block: "start", behavior: "smooth" });
  }

  /** Show a picture, or a job that has none yet. */
  show(job, image) {
    if (image) this.following = null;
    this.job = job;
    this.image = image;
    for (const tile of document.querySelectorAll(".sitting .tile[data-image]")) {
      tile.setAttribute("aria-current", String(Boolean(image) && tile.dataset.image === String(image.id)));
    }
    if (image) this.paint(image.url, image.prompt, image);
    else if (!this.place.querySelector("img.forming")) this.place.replaceChildren(this.empty);
    this.say();
    this.facts();
  }

  update(job) {
    if (this.following === job.id && job.images.length) {
      const keep = this.following;
      this.show(job, job.images.at(-1));
      this.following = FINAL.has(job.status) ? null : keep;
      return;
    }
    if (this.job?.id !== job.id) return;
    this.job = job;
    // A finished job's pictures are still being fetched; only one that broke off leaves the stage.
    if (this.following === job.id && FINAL.has(job.status) && job.status !== "completed") {
      this.following = null;
      this.place.replaceChildren(this.empty);
    }
    if (this.image && !job.images.some((image) => image.id === this.image.id)) this.show(job, job.images.at(-1) ?? null);
    this.say();
  }

  preview(event) {
    if (this.following !== event.id) return;
    const picture = new Image();
    const address = `/api/generate/${event.id}/preview?step=${event.image_index ?? 0}-${event.step ?? 0}`;
    // Shown only once it is here, so that nothing flickers.
    picture.addEventListener("load", () => {
      if (this.following !== event.id) return;
      picture.className = "forming";
      picture.alt = gettext("The picture while it forms");
      this.place.replaceChildren(picture);
    });
    picture.src = address;
  }

  paint(address, prompt, image) {
    const old = this.place.querySelector("img, video");
    if (old && old.getAttribute("src") === address) return;
    if (image.media_type.startsWith("video/")) {
      this.place.replaceChildren(
        h("video", { src: address, poster: image.thumbnail_url, width: image.width, height: image.height, controls: true, loop: true, muted: true, autoplay: true, playsInline: true, "aria-label": gettext("Clip") }),
      );
      return;
    }
    const picture = h("img", { src: address, alt: prompt ?? "", width: image.width, height: image.height });
    const put = () => this.place.replaceChildren(picture);
    if (picture.complete || !old) put();
    else picture.addEventListener("load", put, { once: true });
  }

  say() {
    const job = this.job;
    if (!job) return;
    const running = !FINAL.has(job.status);
    const parts = [h("span", { class: "muted" }, running ? stateWords(job) : "")];
    if (job.status === "running" && job.total_steps) parts.push(h("span", { class: "muted" }, `${number(job.step)} / ${number(job.total_steps)}`));
    this.line.replaceChildren(...parts);
  }

  whole() {
    const { job, image } = this;
    return { ...job, prompt: image.prompt, seed: image.seed };
  }

  facts() {
    const { job, image } = this;
    this.panel.hidden = !image;
    document.getElementById("parameters-none").hidden = Boolean(image);
    if (!image) return;
    const words = document.getElementById("parameters-prompt");
    words.textContent = image.prompt;
    words.hidden = !image.prompt;
    const rows = [
      [gettext("Model"), job.model.title || job.model.name],
      [gettext("Seed"), String(image.seed)],
      [gettext("Size"), `${image.width} × ${image.height}`],
      [gettext("Steps"), number(job.num_inference_steps)],
      [gettext("Guidance"), job.guidance_scale === null ? "" : number(job.guidance_scale, 1)],
      [gettext("Sampler"), this.schedulers[job.scheduler] ?? job.scheduler],
      [gettext("Strength"), job.strength === null ? "" : number(job.strength, 2)],
      [gettext("Enlarged by"), job.hires_scale > 1 ? `${number(job.hires_scale, 2)} ×` : ""],
      [gettext("Frames"), job.num_frames ? interpolate(gettext("%s at %s a second"), [job.num_frames, job.fps]) : ""],
      [gettext("Motion"), job.motion_bucket_id],
      [gettext("Negative prompt"), job.negative_prompt],
      [gettext("LoRAs"), job.loras.map((lora) => `${lora.title || lora.name} × ${lora.weight}`).join(", ")],
      [gettext("Note"), job.notes.map((note) => note.message).join(" ")],
    ];
    document.getElementById("parameters-facts").replaceChildren(
      ...rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    );
    document.getElementById("download").href = `${image.url}?download=1`;
    const isVideo = image.media_type.startsWith("video/");
    for (const id of ["start-from", "start-video"]) document.getElementById(id).hidden = isVideo;
    this.compared(isVideo);
  }

  /** Show how far a picture that was made again is from the first one. */
  compared(isVideo) {
    const { job, image } = this;
    const place = document.getElementById("remade");
    place.hidden = !image.difference;
    if (!image.difference) return;
    const { max, mean, sizes } = image.difference;
    let words;
    if (sizes) words = interpolate(gettext("The sizes differ: %s."), [sizes.join(" → ")]);
    else if (max === 0) words = gettext("Made again: every value of every pixel is the same.");
    else words = interpolate(gettext("Made again: at most %s of 255 apart, %s on average."), [number(max), number(mean, 3)]);
    document.getElementById("remade-words").textContent = words;
    // Black where both are equal: the browser itself subtracts one from the other.
    const shown = job.remake_of_id && !isVideo && !sizes;
    const layers = shown ? [`/api/images/${job.remake_of_id}/file`, image.url].map((src) => h("img", { src, alt: "" })) : [];
    document.getElementById("remade-picture").replaceChildren(...layers);
  }

  /** Make the chosen picture again, alone. */
  async again(button) {
    button.setAttribute("aria-busy", "true");
    try {
      this.onSubmitted(await api(`/api/images/${this.image.id}/make-again`, { method: "POST" }));
    } catch (problem) {
      toastProblem(problem);
    }
    button.removeAttribute("aria-busy");
  }

  startFrom(mode) {
    const { id, url, width, height } = this.image;
    this.form.startFrom(mode, { reference: { image_id: id }, url, width, height });
  }

  async remove() {
    const image = this.image;
    const sure = await confirmAction({
      title: gettext("Delete this picture?"),
      text: gettext("The picture and its parameters go for good."),
      action: gettext("Delete the picture"),
    });
    if (!sure) return;
    try {
      await api(`/api/images/${image.id}`, { method: "DELETE" });
    } catch (problem) {
      toastProblem(problem);
      return;
    }
    this.place.replaceChildren(this.empty);
    this.image = null;
    this.facts();
    this.onDeleted(image.id);
  }
}
