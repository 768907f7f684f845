/**
 * Forms that speak with the REST API.
 *
 * `<form data-api="/api/…" data-method="PATCH">` sends its fields as JSON. Afterwards `data-then` is
 * "reload", "close" or an address in which `{id}` stands for the answer's id. Problems appear at
 * their field, the rest above the button. `data-confirm-*` asks first; a text that is `#id` stands in
 * that template. A checkbox counts as a
 * boolean, `data-number` as a number, `data-list` as comma-separated words.
 */

import { api, signInAddress } from "./api.js";
import { confirmAction } from "./dialog.js";
import { h } from "./dom.js";
import { toast, toastProblem } from "./toast.js";

export function valuesOf(form) {
  const values = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled || field.name === "csrfmiddlewaretoken") continue;
    if (field.type === "radio" && !field.checked) continue;
    if (field.type === "checkbox") values[field.name] = field.checked;
    else if ("number" in field.dataset) {
      if (field.value.trim() !== "") values[field.name] = Number(field.value);
    } else if ("list" in field.dataset) values[field.name] = field.value.split(",").map((word) => word.trim()).filter(Boolean);
    else values[field.name] = field.value;
  }
  return values;
}

export function clearProblems(form) {
  for (const message of form.querySelectorAll(".problem")) message.remove();
  for (const field of form.querySelectorAll("[aria-invalid]")) clearProblem(field);
}

/** Take back what was said of one field; what else describes it stays. */
function clearProblem(field) {
  field.removeAttribute("aria-invalid");
  const words = (field.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean);
  for (const id of words.filter(isProblem)) document.getElementById(id)?.remove();
  const left = words.filter((id) => !isProblem(id));
  if (left.length) field.setAttribute("aria-describedby", left.join(" "));
  else field.removeAttribute("aria-describedby");
}

function isProblem(id) {
  return id.startsWith("problem-");
}

function placeOf(field) {
  return field.closest(".field") ?? field.parentElement;
}

/** The field of a name that people see now; a picker's value stands in a hidden one beside its box. */
function fieldOf(form, name) {
  const last = CSS.escape(name.split(".").pop());
  const all = form.querySelectorAll(`[name="${CSS.escape(name)}"], [name="${last}"], [data-field="${last}"]`);
  const field = [...all].find((one) => !one.closest("[hidden]"));
  return field?.closest("model-picker")?.querySelector("[role=combobox]") ?? field;
}

/** Show each message at its field, what belongs to no field above the buttons; a form of one button has no place. */
export function showProblems(form, problem) {
  if (!form.querySelector(".field")) {
    toastProblem(problem);
    return;
  }
  const left = [];
  let first = null;
  for (const [name, messages] of Object.entries(problem.errors ?? {})) {
    const last = name.split(".").pop();
    const field = fieldOf(form, name);
    const text = messages.map((message) => message.message).join(" ");
    if (!field) {
      left.push(`${last}: ${text}`);
      continue;
    }
    const id = `problem-${last}`;
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", [field.getAttribute("aria-describedby"), id].filter(Boolean).join(" "));
    placeOf(field).append(h("span", { class: "problem", id }, text));
    field.closest("details")?.setAttribute("open", "");
    first ??= field;
  }
  if (!first || left.length) {
    const text = left.length ? left.join(" ") : problem.sentence ?? problem.message;
    const way = problem.code === "signed_out" && h("a", { href: signInAddress() }, gettext("Sign in"));
    const box = h("p", { class: "problem", role: "alert" }, text, " ", way);
    const button = form.querySelector("[type=submit]");
    (button.closest(".actions, .stick") ?? button).before(box);
    box.scrollIntoView({ block: "nearest" });
  }
  first?.focus();
}

/** The words themselves, or those of the template they point to, which keeps up with what changes. */
function wordsOf(text) {
  return text.startsWith("#") ? document.querySelector(text).content.textContent : text;
}

async function submitted(event) {
  const form = event.target.closest("form[data-api]");
  if (!form) return;
  event.preventDefault();
  const { confirmTitle, confirmText, confirmAction: label } = form.dataset;
  if (confirmTitle && !(await confirmAction({ title: confirmTitle, text: wordsOf(confirmText), action: label }))) return;
  clearProblems(form);
  const button = event.submitter ?? form.querySelector("[type=submit]");
  button?.setAttribute("aria-busy", "true");
  try {
    const method = form.dataset.method || "POST";
    const json = method === "DELETE" ? undefined : valuesOf(form);
    const result = await api(form.dataset.api, { method, json });
    form.dispatchEvent(new CustomEvent("api:done", { bubbles: true, detail: result }));
    after(form, result);
  } catch (problem) {
    showProblems(form, problem);
  } finally {
    button?.removeAttribute("aria-busy");
  }
}

function after(form, result) {
  const then = form.dataset.then ?? "";
  if (then === "reload") location.reload();
  else if (then.startsWith("/")) location.assign(then.replace("{id}", result?.id ?? ""));
  else form.closest("dialog")?.close();
  if (form.dataset.done) toast(form.dataset.done, { kind: "good" });
}

/** A problem is no longer true once somebody changes what it was about. */
function edited(event) {
  for (const field of document.querySelectorAll("form [aria-describedby*=problem-]")) {
    if (placeOf(field).contains(event.target)) clearProblem(field);
  }
}

export function wireForms() {
  document.addEventListener("submit", submitted);
  document.addEventListener("input", edited);
  document.addEventListener("change", edited);
}
