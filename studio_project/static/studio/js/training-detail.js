/** One training, live: measures, chart, samples by step, timeline and log. */

import { api } from "./api.js";
import { h } from "./dom.js";
import { measure, number } from "./format.js";
import { showJob } from "./jobs.js";
import { isFresh, on, watch } from "./live.js";
import { MetricChart } from "./metric-chart.js";
import { FINAL } from "./words.js";

const METRICS_MS = 1500;
const LOG_MS = 4000;
const CHECKPOINT_MS = 2500;

const page = document.getElementById("training");
const id = page.dataset.pageJob;
const url = page.dataset.apiUrl;
const chart = new MetricChart(document.getElementById("chart"), document.getElementById("chart-table"));
const samples = { steps: [], byStep: new Map(), follow: true };
let status = page.dataset.status;
let lastStep = 0;
let epoch = null;
let fetching = false;
let metricsTimer = 0;
let logTimer = 0;
let checkpointTimer = 0;
const rhythm = Number(document.getElementById("checkpoints").dataset.every);
let writtenCheckpoints = null;

function show(job) {
  const moved = status !== job.status;
  status = job.status;
  showJob(page, job);
  if (job.images_per_second !== undefined) page.querySelector("[data-bind=speed]").textContent = measure(job.images_per_second);
  showNextSample(job);
  soonCheckpoints(job.step);
  if (moved) refreshWords();
}

function showNextSample(job) {
  const place = document.getElementById("next-sample");
  const every = Number(place.dataset.every);
  if (!every || FINAL.has(job.status) || job.status !== "running") {
    place.textContent = "";
    return;
  }
  const next = Math.min(job.total_steps, (Math.floor(job.step / every) + 1) * every);
  place.textContent = interpolate(gettext("next samples at step %s"), [number(next)]);
}

function refreshWords() {
  htmx.trigger("#job-head", "refresh");
  htmx.trigger("#timeline", "refresh");
  htmx.trigger("#checkpoints", "refresh");
}

/** Fetch the checkpoints again once another one must have been written. */
function soonCheckpoints(step) {
  const written = Math.floor(step / rhythm);
  if (!rhythm || written === writtenCheckpoints) return;
  writtenCheckpoints = written;
  clearTimeout(checkpointTimer);
  checkpointTimer = setTimeout(() => htmx.trigger("#checkpoints", "refresh"), CHECKPOINT_MS);
}

async function fetchProgress() {
  const job = await api(`${url}/progress`);
  if (isFresh("training_job", job.id, job.version)) show(job);
}

/** Fetch what came since the last time; never twice at once. */
async function fetchMetrics() {
  clearTimeout(metricsTimer);
  metricsTimer = 0;
  if (document.hidden || fetching) return;
  fetching = true;
  try {
    while (await fetchMorePoints());
  } finally {
    fetching = false;
  }
}

/** Fetch one page of metrics; false when there are no more. */
async function fetchMorePoints() {
  const metrics = await api(`${url}/metrics?after_step=${lastStep}`);
  // After a resume the steps since the checkpoint were done again.
  const restarted = epoch !== null && metrics.epoch !== epoch;
  epoch = metrics.epoch;
  if (restarted) {
    lastStep = 0;
    chart.clear();
    return true;
  }
  chart.add(metrics.results);
  chart.setHeldOut(metrics.held_out);
  if (!metrics.results.length) return false;
  lastStep = metrics.last_step;
  return true;
}

function soonMetrics() {
  metricsTimer ||= setTimeout(() => fetchMetrics().catch(() => {}), METRICS_MS);
}

async function fetchSamples() {
  const found = [];
  for (let next = `${url}/samples?limit=200`; next; ) {
    const list = await api(next);
    found.push(...list.results);
    next = list.next;
  }
  samples.byStep = new Map();
  for (const sample of found) {
    if (!samples.byStep.has(sample.step)) samples.byStep.set(sample.step, []);
    samples.byStep.get(sample.step).push(sample);
  }
  samples.steps = [...samples.byStep.keys()].sort((a, b) => a - b);
  const range = document.getElementById("step-range");
  document.getElementById("sample-slider").hidden = samples.steps.length < 2;
  range.max = String(Math.max(0, samples.steps.length - 1));
  if (samples.follow) range.value = range.max;
  showSamples();
}

function showSamples() {
  if (!samples.steps.length) return;
  const step = samples.steps[Number(document.getElementById("step-range").value)];
  const text = interpolate(gettext("step %s"), [number(step)]);
  document.getElementById("sample-step").textContent = text;
  document.getElementById("step-range").setAttribute("aria-valuetext", text);
  const pictures = samples.byStep.get(step).sort((a, b) => a.index - b.index);
  document.getElementById("samples").replaceChildren(
    ...pictures.map((sample) =>
      h(
        "figure",
        {},
        h("a", { href: sample.url, target: "_blank", rel: "noopener" }, h("img", { src: sample.url, alt: sample.prompt, width: sample.width, height: sample.height })),
        h("figcaption", { title: `${sample.prompt} · seed ${sample.seed}` }, sample.prompt),
      ),
    ),
  );
}

async function fetchLog() {
  clearTimeout(logTimer);
  logTimer = 0;
  const fold = document.getElementById("log-fold");
  if (!fold.open) return;
  const body = await api(`${url}/log`);
  const log = document.getElementById("log");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  log.textContent = body.log_tail;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function soonLog() {
  logTimer ||= setTimeout(() => fetchLog().catch(() => {}), LOG_MS);
}

on(["training_job.changed"], (event) => {
  if (event.id !== id) return;
  show(event);
  soonMetrics();
  soonLog();
  if (FINAL.has(event.status)) fetchAll();
});
on(["training_job.sampled"], (event) => {
  if (event.id === id) fetchSamples().catch(() => {});
});
// A form of the page has done something: stop, pause, a checkpoint that became a model.
page.addEventListener("api:done", () => setTimeout(refreshWords, 0));
document.getElementById("step-range").addEventListener("input", (event) => {
  samples.follow = event.target.value === event.target.max;
  showSamples();
});
document.getElementById("log-fold").addEventListener("toggle", () => fetchLog().catch(() => {}));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) soonMetrics();
});

function fetchAll() {
  for (const work of [fetchProgress, fetchMetrics, fetchSamples, fetchLog]) work().catch(() => {});
}

fetchAll();
watch(fetchAll);
