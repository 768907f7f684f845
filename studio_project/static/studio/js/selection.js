/** Several pictures of a grid, chosen by their checkboxes, and the bar with what can be done to them. */

import { api } from "./api.js";
import { confirmAction } from "./dialog.js";
import { toast, toastProblem } from "./toast.js";

export class Selection {
  /**
   * @param {Element} grid its items hold a checkbox of the class `pick`
   * @param {Element} bar with a text and buttons `data-all`, `data-clear` and `data-delete`
   * @param {{addressOf: function(Element): string, warning: string, onDeleted?: Function}} given
   *   where the API has the picture of a checkbox, and what deleting takes away
   */
  constructor(grid, bar, { addressOf, warning, onDeleted }) {
    Object.assign(this, { grid, bar, addressOf, warning, onDeleted, last: null });
    grid.addEventListener("click", (event) => this.clicked(event));
    grid.addEventListener("change", () => this.show());
    document.addEventListener("htmx:afterSwap", () => this.show());
    bar.querySelector("[data-all]").addEventListener("click", () => this.check(this.boxes, true));
    bar.querySelector("[data-clear]").addEventListener("click", () => this.check(this.boxes, false));
    bar.querySelector("[data-delete]").addEventListener("click", () => this.remove());
  }

  get boxes() {
    return [...this.grid.querySelectorAll(".pick")];
  }

  get picked() {
    return this.boxes.filter((box) => box.checked);
  }

  /** With Shift everything between the last box and this one follows it. */
  clicked(event) {
    const box = event.target.closest(".pick");
    if (!box) return;
    const boxes = this.boxes;
    const ends = [boxes.indexOf(this.last), boxes.indexOf(box)].sort((a, b) => a - b);
    if (event.shiftKey && ends[0] >= 0) this.check(boxes.slice(ends[0], ends[1] + 1), box.checked);
    this.last = box;
  }

  check(boxes, checked) {
    for (const box of boxes) box.checked = checked;
    this.show();
  }

  show() {
    const count = this.picked.length;
    this.bar.hidden = !count;
    this.grid.classList.toggle("picking", count > 0);
    const text = interpolate(ngettext("%s picture selected", "%s pictures selected", count), [count]);
    const place = this.bar.querySelector("[role=status]");
    if (place.textContent !== text) place.textContent = text;
  }

  async remove() {
    const boxes = this.picked;
    const sure = await confirmAction({
      title: interpolate(ngettext("Delete %s picture?", "Delete %s pictures?", boxes.length), [boxes.length]),
      text: this.warning,
      action: gettext("Delete"),
    });
    if (!sure) return;
    let gone = 0;
    for (const box of boxes) {
      try {
        await api(this.addressOf(box), { method: "DELETE" });
        box.closest("li").remove();
        gone += 1;
      } catch (problem) {
        toastProblem(problem);
        break;
      }
    }
    if (gone) toast(interpolate(ngettext("%s picture deleted", "%s pictures deleted", gone), [gone]), { kind: "good" });
    this.show();
    this.onDeleted?.();
  }
}
