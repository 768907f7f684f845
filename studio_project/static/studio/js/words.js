/** The words for a job's state; `templatetags/studio.py` has the same list for the server. */

import { duration, percent } from "./format.js";

const STATUS = () => ({
  pending: gettext("Not started"),
  queued: gettext("Waiting"),
  running: gettext("Running"),
  paused: gettext("Paused"),
  completed: gettext("Finished"),
  failed: gettext("Failed"),
  canceled: gettext("Canceled"),
});
const PHASE = () => ({
  preparing: gettext("Preparing"),
  caching: gettext("Reading the pictures"),
  compiling: gettext("Compiling the network"),
  training: gettext("Training"),
  sampling: gettext("Painting samples"),
  aside: gettext("Waiting while pictures are made"),
  saving: gettext("Saving"),
  registering: gettext("Registering the model"),
  loading_model: gettext("Loading the model"),
  encoding: gettext("Reading the prompt"),
  denoising: gettext("Painting"),
  decoding: gettext("Finishing the picture"),
});
const WAITING = () => ({
  behind_jobs: gettext("Waiting for its turn"),
  device_busy: gettext("Waiting for the device to be free"),
  no_worker: gettext("Waiting: no worker is running"),
  queue_paused: gettext("Waiting: the queue is paused"),
});

export const FINAL = new Set(["completed", "failed", "canceled"]);

export function statusWord(status) {
  return STATUS()[status] ?? status;
}

/** What a job is doing now, or why it waits. */
export function stateWords(job) {
  if (job.status === "running" && PHASE()[job.phase]) return PHASE()[job.phase];
  if (job.status === "queued" && WAITING()[job.waiting_reason]) return WAITING()[job.waiting_reason];
  return statusWord(job.status);
}

/** 100 % means that a job has finished, not that its last step is done. */
export function donePercent(job) {
  return percent(job.status === "completed" ? 1 : Math.min(0.99, job.progress || 0));
}

/** How long a running job still takes; where a waiting one stands and when it will be done. */
export function timeLeft(job) {
  if (job.status === "queued" && job.position) {
    const place = interpolate(gettext("place %s in the queue"), [job.position]);
    return job.eta_seconds ? `${place} · ${interpolate(gettext("done in about %s"), [duration(job.eta_seconds)])}` : place;
  }
  if (job.status !== "running" || !job.eta_seconds) return "";
  return interpolate(gettext("%s left"), [duration(job.eta_seconds)]);
}

export function typeWord(type) {
  return {
    base_model: gettext("Base model"),
    lora: gettext("LoRA"),
    dreambooth: gettext("DreamBooth"),
    full: gettext("Full model"),
  }[type] ?? type;
}

export function architectureWord(architecture) {
  return { sd1: "SD 1.x", sd2: "SD 2.x", sdxl: "SDXL", svd: "SVD" }[architecture] ?? architecture;
}
