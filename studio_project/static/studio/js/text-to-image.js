/** The generate page: puts form, sitting and stage together. */

import { api } from "./api.js";
import { clearProblems, showProblems } from "./api-form.js";
import { duration } from "./format.js";
import { GenerateForm } from "./generate-form.js";
import { on, watch } from "./live.js";
import { Sitting } from "./sitting.js";
import { Stage } from "./stage.js";
import { toast, toastProblem } from "./toast.js";

const EXPECT_MS = 400;
const bench = document.getElementById("workbench");
let expecting = 0;
const form = new GenerateForm(document.getElementById("generate-form"), {
  defaults: JSON.parse(bench.dataset.defaults),
  mode: bench.dataset.mode,
  start: JSON.parse(bench.dataset.start),
  onChanged: () => expectSoon(),
});
const stage = new Stage({
  form,
  schedulers: JSON.parse(bench.dataset.schedulers),
  onDeleted: (id) => sitting.forget(id),
  onSubmitted: (job) => follow(job),
});
const sitting = new Sitting(document.getElementById("sitting"), {
  onChoose: (job, image) => stage.show(job, image),
  onChanged: (job) => stage.update(job),
  onFinished: () => expectSoon(),
});

/** Ask the site how long the request would take, once the person pauses. */
function expectSoon() {
  clearTimeout(expecting);
  expecting = setTimeout(showExpected, EXPECT_MS);
}

async function showExpected() {
  const place = document.getElementById("expected");
  const asked = expecting;
  let told;
  try {
    // A request that would be refused is not asked about: that would only fill the console.
    const asks = async () => ({ ...(await form.body({ masked: false })), mode: form.mode });
    told = form.isForetold ? await api("/api/generate/estimate", { method: "POST", json: await asks() }) : null;
  } catch {
    told = null;
  }
  if (asked === expecting) place.title = place.textContent = told ? expectedWords(told) : "";
}

function expectedWords(told) {
  const seconds = told.eta_seconds ?? told.seconds;
  const words = [seconds === null ? gettext("time not known yet") : interpolate(gettext("about %s"), [duration(Math.max(1, seconds))])];
  if (told.position > 1) words.push(interpolate(gettext("place %s in the queue"), [told.position]));
  return words.join(" · ");
}

function follow(job) {
  sitting.add(job);
  stage.follow(job);
}

async function submit(event) {
  event.preventDefault();
  clearProblems(form.element);
  const button = document.getElementById("generate");
  button.setAttribute("aria-busy", "true");
  try {
    follow(await api(`/api/generate/${form.mode}`, { method: "POST", json: await form.body() }));
    expectSoon();
  } catch (problem) {
    showProblems(form.element, problem);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

/** One picture's values, and what its job started from. */
async function wholeOf(id) {
  const image = await api(`/api/images/${id}`);
  const job = await api(`/api/generate/${image.job_id}`);
  return { ...job, ...image.parameters, mode: job.mode, model: job.model, loras: job.loras, seed: image.seed, image: job.image, mask_image: job.mask_image };
}

async function openWith() {
  if (bench.dataset.image) {
    try {
      await form.reuse(await wholeOf(bench.dataset.image));
    } catch (problem) {
      toastProblem(problem);
    }
  }
  await sitting.restore(bench.dataset.job);
  showExpected();
}

/** A pasted text of parameters fills the form; any other text is text. */
async function pasted(event) {
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (!/\bSteps: \d+, /.test(text)) return;
  event.preventDefault();
  try {
    const missing = await form.fill(await api("/api/generate/recall", { method: "POST", json: { text } }));
    toast(missing ? interpolate(gettext("The form is filled in. Not here: %s."), [missing]) : gettext("The form is filled in."), { kind: missing ? "note" : "good" });
  } catch (problem) {
    toastProblem(problem);
  }
}

/** A picture dropped anywhere on the page is what the next request starts from. */
function wireDrop() {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const leave = () => {
    depth = 0;
    bench.classList.remove("dragging");
  };
  document.addEventListener("dragenter", (event) => {
    if (!holdsFiles(event)) return;
    depth += 1;
    bench.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (holdsFiles(event) && (depth -= 1) <= 0) leave();
  });
  document.addEventListener("dragover", (event) => {
    if (holdsFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    leave();
    if (form.mode === "text-to-image") form.choose("image-to-image");
    form.source.take(event.dataTransfer.files[0]);
  });
}

wireDrop();
form.element.elements.prompt.addEventListener("paste", pasted);
form.element.addEventListener("submit", submit);
form.element.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.element.requestSubmit(document.getElementById("generate"));
  }
});
on(["generation_job.changed"], (event) => sitting.apply(event));
on(["generation_job.previewed"], (event) => stage.preview(event));
on(["generation_job.deleted"], (event) => sitting.remove(event.id));
on(["queue.changed"], () => sitting.refreshWaiting());
watch(() => sitting.refresh());
openWith();
