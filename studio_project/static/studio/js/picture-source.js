/**
 * The picture that a request starts from, and the mask painted on it.
 *
 * A picture is sent as soon as it is dropped or chosen; what is painted is sent when it is needed.
 */

import { api, required } from "./api.js";
import { Mask } from "./mask.js";
import { toastProblem } from "./toast.js";

const UPLOADS = "/api/generate/uploads/";

/** Send one picture; the answer says how it was made if the file does. */
async function send(file) {
  const body = new FormData();
  body.append("file", file);
  return api(UPLOADS, { method: "POST", body });
}

export class PictureSource {
  /** @param {{onChanged: Function, onSettings: Function}} hooks */
  constructor(root, hooks) {
    Object.assign(this, hooks);
    this.root = root;
    this.picture = null;
    this.recalled = null;
    const part = (name) => root.querySelector(name);
    this.parts = { drop: part("#source-drop"), shown: part("#source-shown"), image: part("#source-image"), settings: part("#source-settings"), file: part("#source-file") };
    this.mask = new Mask({ canvas: part("#mask"), brush: part("#brush"), undo: part("#mask-undo"), clear: part("#mask-clear") });
    for (const name of ["#source-choose", "#source-other"]) part(name).addEventListener("click", () => this.parts.file.click());
    this.parts.file.addEventListener("change", () => this.take(this.parts.file.files[0]));
    part("#source-remove").addEventListener("click", () => this.clear());
    part("#source-larger").addEventListener("click", () => this.enlarge());
    this.parts.settings.addEventListener("click", () => this.onSettings(this.recalled));
  }

  /** Keep a file that was dropped, chosen or pasted. */
  async take(file) {
    this.parts.file.value = "";
    if (!file) return;
    this.root.setAttribute("aria-busy", "true");
    try {
      const { recalled, ...picture } = await send(file);
      this.show({ reference: { upload_id: picture.id }, ...picture });
      this.recalled = recalled;
      this.parts.settings.hidden = !recalled;
    } catch (problem) {
      toastProblem(problem);
    } finally {
      this.root.removeAttribute("aria-busy");
    }
  }

  /** Start from a picture that the site has. @param {{reference: Object, url: string, width: number, height: number}} picture */
  show(picture) {
    this.picture = picture;
    this.recalled = null;
    Object.assign(this.parts.image, { src: picture.url, width: picture.width, height: picture.height });
    document.getElementById("sheet").style.setProperty("--ratio", picture.width / picture.height);
    this.mask.begin(picture.width, picture.height);
    this.parts.drop.hidden = true;
    this.parts.shown.hidden = false;
    this.parts.settings.hidden = true;
    this.root.dispatchEvent(new Event("input", { bubbles: true }));
    this.onChanged();
  }

  clear() {
    this.picture = null;
    this.parts.drop.hidden = false;
    this.parts.shown.hidden = true;
    this.parts.settings.hidden = true;
    this.onChanged();
  }

  /** Show the easel as large as the window, for painting; Escape or a click beside it ends that. */
  enlarge() {
    const dialog = document.createElement("dialog");
    dialog.className = "easel-large";
    dialog.append(this.parts.shown);
    const close = () => {
      this.parts.drop.after(this.parts.shown);
      dialog.remove();
    };
    dialog.addEventListener("close", close);
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("#source-remove")) dialog.close();
    });
    document.body.append(dialog);
    dialog.showModal();
  }

  /**
   * What a request names.
   * @param {boolean} masked whether it needs a mask
   * @throws {Problem} no picture is chosen, or nothing was painted
   */
  async references(masked) {
    if (!this.picture) throw required("image", gettext("Choose the picture to start from."));
    const found = { image: this.picture.reference };
    if (!masked) return found;
    if (this.mask.isEmpty) throw required("mask_image", gettext("Paint over the part that shall be painted anew."));
    if (!this.mask.sent) this.mask.sent = (await send(await this.mask.file())).id;
    return { ...found, mask_image: { upload_id: this.mask.sent } };
  }
}
