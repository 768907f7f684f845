/** What every page does: the live connection, forms, dialogs, the menu, hints and list errors. */

import { csrfToken } from "./api.js";
import { wireForms } from "./api-form.js";
import { wireDialogs } from "./dialog.js";
import { h, icon } from "./dom.js";
import { exactTime, when } from "./format.js";
import { wireJobs } from "./jobs.js";
import { on, onState, start } from "./live.js";
import { wireModelNews } from "./model-news.js";
import { toast } from "./toast.js";

const OFFLINE_AFTER_MS = 2500;

function wireHints() {
  document.addEventListener("click", (event) => {
    const box = event.target.closest(".hint button")?.parentElement;
    if (!box) return;
    const closed = (document.cookie.match(/studio_hints=([^;]*)/)?.[1] ?? "").split(".").filter(Boolean);
    document.cookie = `studio_hints=${[...closed, box.dataset.hint].join(".")};path=/;max-age=31536000;samesite=lax`;
    box.remove();
  });
}

function wireTheme() {
  document.addEventListener("submit", async (event) => {
    if (!event.target.matches("form[data-theme-form]")) return;
    event.preventDefault();
    const theme = event.submitter.value;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    for (const button of document.querySelectorAll("form[data-theme-form] button")) {
      button.setAttribute("aria-pressed", String(button.value === theme));
    }
    document.dispatchEvent(new CustomEvent("studio:theme"));
    const body = new FormData(event.target);
    body.set("theme", theme);
    await fetch(event.target.action, { method: "POST", body, credentials: "same-origin" });
  });
}

function wireCopy() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    toast(interpolate(gettext("Copied: %s"), [button.dataset.copy.slice(0, 80)]), { kind: "good", ms: 2500 });
  });
}

/** A list that cannot be fetched says so in its place and offers to try again. */
function wireLists() {
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-CSRFToken"] = csrfToken();
  });
  const failed = (event) => {
    const source = event.detail.elt;
    const path = event.detail.requestConfig?.path ?? event.detail.pathInfo?.requestPath;
    const target = event.detail.target ?? source;
    if (target.previousElementSibling?.matches("[data-list-problem]")) return;
    const box = h(
      "div",
      { class: "notice bad", role: "alert", dataset: { listProblem: "" } },
      icon("circle-alert"),
      h("div", {}, h("p", {}, gettext("This list could not be loaded. The rest of the page still works."))),
      h("button", {
        type: "button",
        class: "secondary small",
        on: { click: () => { box.remove(); htmx.ajax("GET", path, { source, target, swap: source.getAttribute("hx-swap") ?? "innerHTML" }); } },
      }, icon("refresh-cw"), gettext("Try again")),
    );
    target.before(box);
  };
  document.addEventListener("htmx:beforeSwap", (event) => {
    // A session that ended answers with the sign-in page, which is no part of a list.
    if (new URL(event.detail.xhr.responseURL, location.href).pathname !== document.documentElement.dataset.login) return;
    event.detail.shouldSwap = false;
    location.reload();
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    const before = event.detail.target.previousElementSibling;
    if (before?.matches("[data-list-problem]")) before.remove();
  });
  document.addEventListener("htmx:responseError", failed);
  document.addEventListener("htmx:sendError", failed);
}

/** Say it in the top bar when the page is not live, but only when that lasts. */
function wireConnection() {
  const sign = document.getElementById("connection");
  if (!sign) return;
  let timer = null;
  onState((state) => {
    clearTimeout(timer);
    if (state === "live") {
      sign.hidden = true;
      return;
    }
    const text = {
      connecting: gettext("Connecting again…"),
      polling: gettext("Updating every few seconds"),
      "signed-out": gettext("You were signed out"),
    }[state];
    timer = setTimeout(() => {
      sign.querySelector("span").textContent = text;
      sign.hidden = false;
    }, state === "signed-out" ? 0 : OFFLINE_AFTER_MS);
  });
}

function tickTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const moment = time.getAttribute("datetime");
    time.title = exactTime(moment);
    if (Date.now() - new Date(moment).getTime() < 86400000) time.textContent = when(moment);
  }
}

function wireFinished() {
  on(["training_job.changed"], (event) => {
    if (event.status !== "failed" || document.querySelector(`[data-page-job="${CSS.escape(event.id)}"]`)) return;
    toast(gettext("A training failed."), { kind: "bad", link: { href: `/training/${event.id}`, label: gettext("See why") } });
  });
}

wireForms();
wireDialogs();
wireHints();
wireTheme();
wireCopy();
wireLists();
if (document.documentElement.dataset.user) {
  wireConnection();
  wireJobs();
  wireModelNews();
  wireFinished();
  start();
}
tickTimes();
setInterval(tickTimes, 30000);
