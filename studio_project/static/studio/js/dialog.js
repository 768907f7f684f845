/** Dialogs: one that asks, and those that stand in the page and are opened by a button. */

import { h } from "./dom.js";

/**
 * Ask once before something that cannot be undone.
 * @returns {Promise<boolean>}
 */
export function confirmAction({ title, text, action, danger = true }) {
  return new Promise((resolve) => {
    const done = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    const dialog = h(
      "dialog",
      { "aria-labelledby": "confirm-title", on: { cancel: () => done(false) } },
      h(
        "article",
        {},
        h("h2", { id: "confirm-title" }, title),
        h("p", {}, text),
        h(
          "div",
          { class: "actions" },
          h("button", { type: "button", class: "secondary", on: { click: () => done(false) } }, gettext("Keep it")),
          h("button", { type: "button", class: danger ? "danger" : "", on: { click: () => done(true) } }, action),
        ),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** `data-open="id"` opens a dialog of the page, `data-close` closes it, a click beside it as well. */
export function wireDialogs() {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener) document.getElementById(opener.dataset.open)?.showModal();
    if (event.target.closest("[data-close]")) event.target.closest("dialog")?.close();
    if (event.target.matches("dialog")) event.target.close();
  });
}
