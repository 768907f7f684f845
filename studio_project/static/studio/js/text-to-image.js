/** The generate page: puts form, sitting and stage together. */

import { api } from "./api.js";
import { clearProblems, showProblems } from "./api-form.js";
import { duration } from "./format.js";
import { GenerateForm } from "./generate-form.js";
import { on, watch } from "./live.js";
import { Sitting } from "./sitting.js";
import { Stage } from "./stage.js";
import { toastProblem } from "./toast.js";

const EXPECT_MS = 400;
const bench = document.getElementById("workbench");
const form = new GenerateForm(document.getElementById("generate-form"), {
  defaults: JSON.parse(bench.dataset.defaults),
});
const stage = new Stage({ form, schedulers: JSON.parse(bench.dataset.schedulers), onDeleted: (id) => sitting.forget(id) });
const sitting = new Sitting(document.getElementById("sitting"), {
  onChoose: (job, image) => stage.show(job, image),
  onChanged: (job) => stage.update(job),
  onFinished: () => expectSoon(),
});

let expecting = 0;

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
    told = form.model && form.element.checkValidity() ? await api("/api/generate/estimate", { method: "POST", json: form.body() }) : null;
  } catch {
    told = null;
  }
  if (asked === expecting) place.textContent = told ? expectedWords(told) : "";
}

function expectedWords(told) {
  const seconds = told.eta_seconds ?? told.seconds;
  const words = [seconds === null ? gettext("time not known yet") : interpolate(gettext("about %s"), [duration(Math.max(1, seconds))])];
  if (told.position > 1) words.push(interpolate(gettext("place %s in the queue"), [told.position]));
  return words.join(" · ");
}

async function submit(event) {
  event.preventDefault();
  clearProblems(form.element);
  const button = document.getElementById("generate");
  button.setAttribute("aria-busy", "true");
  try {
    const job = await api("/api/generate/text-to-image", { method: "POST", json: form.body() });
    sitting.add(job);
    stage.follow(job);
    expectSoon();
  } catch (problem) {
    showProblems(form.element, problem);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

async function openWith() {
  if (bench.dataset.image) {
    try {
      await form.reuse(await api(`/api/images/${bench.dataset.image}`));
    } catch (problem) {
      toastProblem(problem);
    }
  }
  await sitting.restore(bench.dataset.job);
}

form.element.addEventListener("submit", submit);
form.element.addEventListener("input", expectSoon);
form.element.addEventListener("change", expectSoon);
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
expectSoon();
openWith();
