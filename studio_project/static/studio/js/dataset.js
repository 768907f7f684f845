/** One dataset: adding pictures, captions in place, removing pictures, counts that keep up. */

import { api } from "./api.js";
import { wireCaptions } from "./caption-editor.js";
import { confirmAction } from "./dialog.js";
import { on, watch } from "./live.js";
import { Selection } from "./selection.js";
import { toast, toastProblem } from "./toast.js";
import { filesOfDrop, Uploads } from "./upload.js";

const page = document.getElementById("dataset");
const pictures = document.getElementById("pictures");
const counts = document.getElementById("counts");
let timer = 0;

function refreshCounts() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    counts.hidden = false;
    htmx.trigger(counts, "refresh");
  }, 300);
}

function refreshPictures() {
  // Never under the hands of someone who types.
  if (pictures.contains(document.activeElement) && document.activeElement.matches("textarea, input")) return;
  htmx.trigger(pictures, "refresh");
}

/** From the first picture on, training is the next step. */
function showFilled() {
  document.getElementById("drop").hidden = true;
  document.getElementById("train-link").hidden = false;
  document.getElementById("add-pictures").classList.add("secondary");
}

function wireUpload() {
  const uploads = new Uploads({
    url: page.dataset.upload,
    list: document.getElementById("uploads"),
    panel: document.getElementById("upload-panel"),
    title: document.getElementById("upload-title"),
    retry: document.getElementById("upload-retry"),
    onAdded: (added) => {
      if (added) showFilled();
      refreshCounts();
      refreshPictures();
    },
  });
  document.getElementById("upload-close").addEventListener("click", () => uploads.close());
  for (const id of ["files", "folder"]) {
    const input = document.getElementById(id);
    const take = () => {
      if (!input.files.length) return;
      uploads.add([...input.files]);
      input.value = "";
    };
    input.addEventListener("change", take);
    take(); // what was chosen before this script was there
  }
  document.addEventListener("click", (event) => {
    const chooser = event.target.closest("[data-choose]");
    if (chooser) document.getElementById(chooser.dataset.choose).click();
  });
  let depth = 0;
  const dragsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const leave = () => {
    depth = 0;
    page.classList.remove("dragging");
  };
  addEventListener("dragenter", (event) => {
    if (!dragsFiles(event)) return;
    depth += 1;
    page.classList.add("dragging");
  });
  addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) leave();
  });
  addEventListener("dragover", (event) => dragsFiles(event) && event.preventDefault());
  addEventListener("drop", async (event) => {
    if (!dragsFiles(event)) return;
    event.preventDefault();
    leave();
    uploads.add(await filesOfDrop(event.dataTransfer));
  });
  addEventListener("beforeunload", (event) => {
    if (uploads.running) event.preventDefault();
  });
}

async function removePicture(button) {
  const sure = await confirmAction({
    title: gettext("Delete this picture?"),
    text: interpolate(gettext("“%s” goes from this dataset, with its caption."), [button.dataset.name]),
    action: gettext("Delete the picture"),
  });
  if (!sure) return;
  const item = button.closest("li");
  item.hidden = true;
  try {
    await api(button.dataset.remove, { method: "DELETE" });
    item.remove();
    refreshCounts();
  } catch (problem) {
    item.hidden = false;
    toastProblem(problem);
  }
}

/** Give all selected pictures the same repeats. */
function wireRepeats(selection) {
  const form = document.getElementById("repeat-selected");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const repeats = form.elements.repeats.valueAsNumber;
    const boxes = selection.picked;
    const button = event.submitter ?? form.querySelector("button");
    button.setAttribute("aria-busy", "true");
    try {
      const { changed } = await api(page.dataset.upload, { method: "PATCH", json: { images: boxes.map((box) => Number(box.value)), repeats } });
      for (const box of boxes) box.closest("li").querySelector("[data-repeats]").value = String(repeats);
      toast(interpolate(ngettext("Repeats set for %s picture", "Repeats set for %s pictures", changed), [changed]), { kind: "good" });
    } catch (problem) {
      toastProblem(problem);
    }
    button.removeAttribute("aria-busy");
  });
}

function wireSelection() {
  const selection = new Selection(pictures, document.getElementById("selection"), {
    addressOf: (box) => `${page.dataset.upload}/${box.value}`,
    warning: gettext("The pictures go from this dataset, with their captions."),
    onDeleted: refreshCounts,
  });
  wireRepeats(selection);
}

if (page.dataset.upload) {
  wireUpload();
  wireSelection();
  wireCaptions(pictures);
  pictures.addEventListener("caption:saved", refreshCounts);
  pictures.addEventListener("click", (event) => {
    const button = event.target.closest("[data-remove]");
    if (button) removePicture(button);
  });
}
on(["dataset.changed"], (event) => {
  if (String(event.id) === page.dataset.id) refreshCounts();
});
watch(() => {
  if (!counts.hidden) refreshCounts();
});
