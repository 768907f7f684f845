/** Short notices in the corner; they leave by themselves, errors stay until closed. */

import { signInAddress } from "./api.js";
import { h, icon } from "./dom.js";

const SHOWN_MS = 7000;
const ICONS = { good: "circle-check", bad: "circle-alert", note: "info" };

/**
 * Show a notice.
 * @param {string} text
 * @param {{kind?: "good"|"bad"|"note", link?: {href: string, label: string}, action?: {label: string, run: Function}, ms?: number}} options
 */
export function toast(text, { kind = "note", link, action, ms } = {}) {
  const close = () => box.remove();
  const extra = link
    ? h("a", { href: link.href }, link.label)
    : action && h("button", { type: "button", class: "secondary small", on: { click: () => { close(); action.run(); } } }, action.label);
  const box = h(
    "div",
    { class: `toast ${kind}`, role: kind === "bad" ? "alert" : "status" },
    icon(ICONS[kind]),
    h("div", {}, h("p", {}, text), extra),
    h("button", { type: "button", class: "quiet small", "aria-label": gettext("Close"), on: { click: close } }, icon("x")),
  );
  document.getElementById("toasts").append(box);
  if (kind !== "bad" || ms) setTimeout(close, ms ?? SHOWN_MS);
  return close;
}

export function toastProblem(problem) {
  if (problem.name === "AbortError") return;
  toast(problem.sentence ?? problem.message, {
    kind: "bad",
    link: problem.code === "signed_out" ? { href: signInAddress(), label: gettext("Sign in") } : undefined,
  });
}
