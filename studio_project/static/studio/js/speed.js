/** What jobs took on this site with each base, so that a button can say how long the next takes. */

const KEPT = "studio.speed";

export function learnSpeed(job) {
  if (job.status !== "completed" || !job.started_at) return;
  const seconds = (new Date(job.finished_at) - new Date(job.started_at)) / 1000;
  const speed = seconds / (job.total_steps * job.width * job.height * (job.num_frames ?? 1));
  const speeds = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  const key = String(job.base_model_id);
  speeds[key] = speeds[key] ? speeds[key] * 0.5 + speed * 0.5 : speed;
  localStorage.setItem(KEPT, JSON.stringify(speeds));
}

/** @returns {number|null} seconds for an amount of work, null while nothing was learned */
export function expectedSeconds(base, work) {
  const speed = JSON.parse(localStorage.getItem(KEPT) ?? "{}")[String(base)];
  return speed && work ? speed * work : null;
}
