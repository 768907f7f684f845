/**
 * Keeps every shown job true: cards, the strip at the top edge, the badge and the page's title.
 *
 * Any element with `data-job` is a job; inside it `data-bind` names what to write. A job that is
 * new here or that changed its status makes the strip fetch itself again.
 */

import { measure, number } from "./format.js";
import { on, watch } from "./live.js";
import { donePercent, FINAL, stateWords, timeLeft } from "./words.js";

const EVENTS = ["training_job.changed", "generation_job.changed"];
const plainTitle = document.title;

const writers = {
  state: (job) => stateWords(job),
  percent: donePercent,
  left: (job) => timeLeft(job),
  step: (job) => (job.total_steps ? `${number(job.step)} / ${number(job.total_steps)}` : ""),
  loss: (job) => measure(job.loss),
};

/** Write a job's scalars into an element that shows it. */
export function showJob(element, job) {
  element.dataset.status = job.status;
  for (const target of element.querySelectorAll("[data-bind]")) {
    const name = target.dataset.bind;
    if (name === "bar") target.value = job.progress || 0;
    else if (name === "chip") {
      target.dataset.status = job.status;
      target.textContent = stateWords(job);
    } else if (writers[name]) {
      const text = writers[name](job);
      if (target.textContent !== text) target.textContent = text;
    }
  }
}

let pending = 0;

/** Fetch the strip again, at most twice a second. */
function refreshStrip() {
  clearTimeout(pending);
  pending = setTimeout(async () => {
    try {
      const response = await fetch("/queue?part=strip", { credentials: "same-origin" });
      if (!response.ok) return;
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const fresh = page.getElementById("live-strip");
      if (fresh) document.getElementById("live-strip")?.replaceWith(fresh);
    } catch {
      return;
    }
    showTotals();
  }, 300);
}

function showTotals() {
  const strip = document.getElementById("live-strip");
  if (!strip) return;
  const bar = document.getElementById("live-bar");
  const running = strip.dataset.status === "running";
  bar.hidden = !running;
  bar.value = running ? strip.querySelector("[data-bind=bar]")?.value ?? 0 : 0;
  document.title = running ? `${strip.querySelector("[data-bind=percent]").textContent} · ${plainTitle}` : plainTitle;
  for (const badge of document.querySelectorAll("[data-badge=jobs]")) {
    badge.textContent = strip.dataset.count;
    badge.hidden = strip.dataset.count === "0";
  }
}

/** Start keeping jobs true on this page. */
export function wireJobs() {
  const strip = () => document.getElementById("live-strip");
  if (!strip()) return;
  on(EVENTS, (event) => {
    const mine = [...document.querySelectorAll(`[data-job="${CSS.escape(event.id)}"]`)];
    const moved = mine.some((element) => element.dataset.status !== event.status);
    for (const element of mine) showJob(element, event);
    if (!strip().dataset.jobs.split(" ").includes(event.id) || moved) refreshStrip();
    else showTotals();
    if (moved && FINAL.has(event.status)) document.dispatchEvent(new CustomEvent("studio:job-final", { detail: event }));
  });
  on(["training_job.deleted", "generation_job.deleted"], refreshStrip);
  watch(refreshStrip);
  showTotals();
}
