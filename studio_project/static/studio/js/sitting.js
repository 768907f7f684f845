/** The results of this sitting: every job stays in its place, newest first, with its pictures. */

import { api } from "./api.js";
import { announce, h, icon } from "./dom.js";
import { showJob } from "./jobs.js";
import { isFresh } from "./live.js";
import { toastProblem } from "./toast.js";
import { FINAL, stateWords, timeLeft } from "./words.js";

const KEPT = "studio.sitting";
const MOST = 30;
const WAITING_MS = 3000;

export class Sitting {
  /** @param {{onChoose: Function, onChanged: Function, onFinished: Function}} hooks */
  constructor(list, hooks) {
    this.list = list;
    Object.assign(this, hooks);
    this.jobs = new Map();
    this.fetching = new Map();
    this.lookedAt = 0;
    list.addEventListener("click", (event) => this.clicked(event));
    list.addEventListener("keydown", (event) => this.key(event));
  }

  /** Bring back the jobs of this browser tab, and the one the address names. */
  async restore(extra) {
    const ids = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    if (extra && !ids.includes(extra)) ids.unshift(extra);
    const found = await Promise.all(ids.map((id) => api(`/api/generate/${id}`).catch(() => null)));
    for (const job of found.filter(Boolean).reverse()) this.add(job);
    const newest = [...this.jobs.values()].pop();
    if (newest) this.onChoose(newest, newest.images.at(-1) ?? null);
  }

  add(job) {
    isFresh("generation_job", job.id, job.version);
    if (!this.jobs.has(job.id)) {
      this.jobs.set(job.id, job);
      this.list.prepend(this.row(job));
    }
    this.show(job);
    this.keep();
  }

  keep() {
    const ids = [...this.jobs.keys()].reverse().slice(0, MOST);
    sessionStorage.setItem(KEPT, JSON.stringify(ids));
  }

  row(job) {
    return h(
      "li",
      { class: "card", id: `job-${job.id}`, dataset: { job: job.id, status: job.status } },
      h(
        "div",
        { class: "section-head" },
        h("span", { class: "clip", title: job.prompt ?? "" }, job.prompt || (job.mode === "image-to-video" ? gettext("Clip") : gettext("(no prompt)"))),
        h(
          "span",
          { class: "row" },
          h("span", { class: "chip", dataset: { bind: "chip", status: job.status } }, stateWords(job)),
          h("span", { class: "muted small-text", dataset: { bind: "left" } }, timeLeft(job)),
          h("button", { type: "button", class: "quiet small", dataset: { cancel: job.id }, "aria-label": gettext("Cancel") }, icon("x")),
        ),
      ),
      h("progress", { max: 1, value: job.progress || 0, dataset: { bind: "bar" }, "aria-label": gettext("Progress") }),
      h("p", { class: "problem", hidden: true }),
      h("ul", { class: "strip-of" }),
    );
  }

  /** Draw a job as it is now. */
  show(job) {
    this.jobs.set(job.id, job);
    const row = document.getElementById(`job-${job.id}`);
    showJob(row, job);
    const final = FINAL.has(job.status);
    row.querySelector("[data-cancel]").hidden = final;
    row.querySelector("progress").hidden = final;
    const problem = row.querySelector(".problem");
    problem.hidden = !job.error;
    problem.textContent = job.error ? `${job.error.message} ${job.error.hint}` : "";
    const strip = row.querySelector("ul");
    const items = job.images.map((image) => this.tile(job, image));
    if (!final) for (let index = items.length; index < job.num_images; index += 1) items.push(h("li", {}, h("span", { class: "tile bone" })));
    strip.replaceChildren(...items);
    this.onChanged(job);
  }

  tile(job, image) {
    const text = interpolate(gettext("Picture %s, seed %s"), [image.index + 1, image.seed]);
    return h(
      "li",
      {},
      h("button", { type: "button", class: "tile", "aria-label": text, dataset: { image: image.id, of: job.id } }, h("img", { src: image.thumbnail_url, alt: "", loading: "lazy", width: image.width, height: image.height })),
    );
  }

  /** Apply an event; what it does not carry is fetched. */
  apply(event) {
    const job = this.jobs.get(event.id);
    if (!job) return;
    const moved = event.status !== job.status;
    const more = event.images !== undefined && event.images !== job.images.length;
    Object.assign(job, { status: event.status, phase: event.phase, waiting_reason: event.waiting_reason, progress: event.progress, step: event.step, eta_seconds: event.status === "queued" ? job.eta_seconds : event.eta_seconds, version: event.version });
    const row = document.getElementById(`job-${event.id}`);
    showJob(row, job);
    this.onChanged(job);
    if (moved || more || event.images === undefined) this.fetch(event.id);
  }

  /** Fetch one job, never twice at once, and once more when it changed meanwhile. */
  async fetch(id) {
    if (this.fetching.has(id)) {
      this.fetching.set(id, true);
      return;
    }
    this.fetching.set(id, false);
    try {
      const before = this.jobs.get(id);
      const job = await api(`/api/generate/${id}`);
      if (isFresh("generation_job", job.id, job.version) && this.jobs.has(id)) {
        this.show(job);
        if (FINAL.has(job.status) && !before.told) this.finished(job);
      }
    } catch (problem) {
      if (problem.status === 404) this.remove(id);
    } finally {
      const again = this.fetching.get(id);
      this.fetching.delete(id);
      if (again) this.fetch(id);
    }
  }

  finished(job) {
    job.told = true;
    this.onFinished(job);
    if (job.status === "completed") announce(interpolate(ngettext("%s picture is ready", "%s pictures are ready", job.images.length), [job.images.length]));
  }

  /** After a gap: everything that was not final may have moved on. */
  refresh() {
    for (const job of this.jobs.values()) if (!FINAL.has(job.status)) this.fetch(job.id);
  }

  /** The queue moved: places and times of what waits did too. */
  refreshWaiting() {
    if (Date.now() - this.lookedAt < WAITING_MS) return;
    this.lookedAt = Date.now();
    for (const job of this.jobs.values()) if (job.status === "queued") this.fetch(job.id);
  }

  remove(id) {
    this.jobs.delete(id);
    document.getElementById(`job-${id}`)?.remove();
    this.keep();
  }

  /** A picture was deleted. */
  forget(imageId) {
    for (const job of this.jobs.values()) {
      const left = job.images.filter((image) => image.id !== imageId);
      if (left.length === job.images.length) continue;
      job.images = left;
      if (left.length || !FINAL.has(job.status)) this.show(job);
      else this.remove(job.id);
    }
  }

  async clicked(event) {
    const tile = event.target.closest(".tile[data-image]");
    if (tile) {
      const job = this.jobs.get(tile.dataset.of);
      this.onChoose(job, job.images.find((image) => String(image.id) === tile.dataset.image));
    }
    const cancel = event.target.closest("[data-cancel]");
    if (!cancel) return;
    cancel.setAttribute("aria-busy", "true");
    try {
      this.show(await api(`/api/generate/${cancel.dataset.cancel}/cancel`, { method: "POST" }));
    } catch (problem) {
      toastProblem(problem);
    }
    cancel.removeAttribute("aria-busy");
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const tile = event.target.closest(".tile[data-image]");
    if (!step || !tile) return;
    event.preventDefault();
    const tiles = [...this.list.querySelectorAll("[data-image]")];
    const next = tiles[tiles.indexOf(tile) + step];
    next?.focus();
    next?.click();
  }
}
