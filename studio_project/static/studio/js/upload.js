/**
 * Sends files in requests of at most 8 MB and 200 files, so that no server holds a large body.
 *
 * Each file has a row with a bar, a reason when it was refused and a way to try again when the
 * connection was the cause.
 */

import { answer, csrfToken } from "./api.js";
import { announce, h, icon } from "./dom.js";
import { bytes } from "./format.js";

const REQUEST_BYTES = 8 * 1000 * 1000;
const REQUEST_FILES = 200;
const LARGEST_FILE_BYTES = 64 * 1000 * 1000;
const PICTURE = /\.(jpe?g|png|webp)$/i;
const KNOWN = /\.(jpe?g|png|webp|zip|txt|jsonl)$/i;
const ZIP = /\.zip$/i;
const SHOWN_DONE = 200;

const folders = new WeakMap();

/** The files of a drop, folders opened. */
export async function filesOfDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesOfEntry))).flat();
}

async function filesOfEntry(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    folders.set(file, entry.fullPath.slice(1, -file.name.length));
    return [file];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(filesOfEntry))).flat();
    found.push(...some);
  }
}

/** A file's path below what was dropped or chosen; the site itself learns only the name. */
function pathOf(file) {
  return file.webkitRelativePath || `${folders.get(file) ?? ""}${file.name}`;
}

/** Lists of captions come last, for they need their pictures; archives go alone. */
function rank(file) {
  if (/\.jsonl$/i.test(file.name)) return 2;
  return ZIP.test(file.name) ? 1 : 0;
}

/** What belongs together: a picture and the caption of its name in its folder. */
function groupOf({ path, file }) {
  return rank(file) ? path : path.replace(/\.[^.]*$/, "").toLowerCase();
}

/**
 * Put rows into requests.
 *
 * A picture travels with its caption, and no request holds two files of one name: the site tells by
 * their names which it did not take.
 */
export function batchesOf(rows) {
  const groups = new Map();
  for (const row of rows) groups.set(groupOf(row), [...(groups.get(groupOf(row)) ?? []), row]);
  const batches = [];
  for (const group of groups.values()) {
    const kind = rank(group[0].file);
    const bytes = group.reduce((sum, row) => sum + row.file.size, 0);
    let batch = batches.at(-1);
    const fits =
      batch &&
      !ZIP.test(group[0].file.name) &&
      batch.kind === kind &&
      batch.rows.length + group.length <= REQUEST_FILES &&
      batch.bytes + bytes <= REQUEST_BYTES &&
      !group.some((row) => batch.names.has(row.file.name));
    if (!fits) {
      batch = { rows: [], bytes: 0, kind, names: new Set() };
      batches.push(batch);
    }
    for (const row of group) batch.names.add(row.file.name);
    batch.rows.push(...group);
    batch.bytes += bytes;
  }
  return batches;
}

export class Uploads {
  /**
   * @param {{url: string, list: Element, panel: Element, title: Element, retry: Element, onAdded: Function}} parts
   */
  constructor(parts) {
    Object.assign(this, parts);
    this.rows = [];
    this.running = false;
    this.retry.addEventListener("click", () => this.again());
  }

  /** Queue files and start sending. */
  add(files) {
    const wanted = files.filter((file) => !file.name.startsWith(".")).sort((a, b) => rank(a) - rank(b) || pathOf(a).localeCompare(pathOf(b)));
    for (const file of wanted) {
      const row = this.makeRow(file);
      this.rows.push(row);
      if (!KNOWN.test(file.name)) this.refuse(row, gettext("This kind of file is not taken. Use JPEG, PNG or WebP pictures, .txt captions or a zip."));
      else if (file.size > LARGEST_FILE_BYTES) this.refuse(row, interpolate(gettext("This file is %s; one file may have at most 64 MB."), [bytes(file.size)]));
      else if (!file.size && PICTURE.test(file.name)) this.refuse(row, gettext("This file is empty."));
    }
    this.panel.hidden = false;
    this.run();
  }

  makeRow(file) {
    const path = pathOf(file);
    const bar = h("progress", { max: 1, value: 0, "aria-label": path });
    const state = h("span", { class: "muted" }, bytes(file.size));
    const element = h("li", {}, h("span", { class: "clip", title: path }, path), bar, state);
    this.list.append(element);
    return { file, path, bar, state, element, done: false, failed: false, refused: false };
  }

  async run() {
    if (this.running) return;
    this.running = true;
    let added = 0;
    for (;;) {
      const waiting = this.rows.filter((row) => !row.done && !row.failed && !row.refused);
      if (!waiting.length) break;
      this.say();
      const [batch] = batchesOf(waiting);
      added += await this.send(batch);
      this.onAdded(added);
    }
    this.running = false;
    this.say();
  }

  async send(batch) {
    try {
      const result = await this.post(batch);
      this.take(batch, result);
      return (result.created ?? []).length;
    } catch (problem) {
      // 422: nothing was taken, with the same body as a success.
      if (problem.body?.rejected) {
        this.take(batch, problem.body);
        return 0;
      }
      const text = problem.sentence ?? problem.message;
      const own = problem.status >= 400 && problem.status < 500 && ![408, 429].includes(problem.status);
      for (const row of batch.rows) this.fail(row, text, !own);
      return 0;
    }
  }

  take(batch, result) {
    const refused = new Map((result.rejected ?? []).map((item) => [item.name, item]));
    for (const row of batch.rows) {
      const item = refused.get(row.file.name);
      refused.delete(row.file.name);
      if (item) this.refuse(row, item.detail);
      else this.finish(row);
    }
    // What lay inside a zip has no row of its own yet.
    for (const item of refused.values()) {
      const row = this.makeRow({ name: item.name, size: 0 });
      this.rows.push(row);
      this.refuse(row, item.detail);
    }
  }

  post(batch) {
    const body = new FormData();
    for (const row of batch.rows) body.append("files", row.file, row.file.name);
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", this.url);
      request.setRequestHeader("X-CSRFToken", csrfToken());
      request.setRequestHeader("Accept", "application/json");
      request.upload.addEventListener("progress", (event) => this.spread(batch, event.loaded));
      const settle = () => {
        try {
          resolve(answer(request.status, request.responseText));
        } catch (problem) {
          reject(problem);
        }
      };
      request.addEventListener("load", settle);
      request.addEventListener("error", () => reject(new Error(gettext("The connection broke off."))));
      request.addEventListener("abort", () => reject(new Error(gettext("The connection broke off."))));
      request.send(body);
    });
  }

  /** Share the bytes that went out among the files of a request, in their order. */
  spread(batch, loaded) {
    let left = loaded;
    for (const row of batch.rows) {
      row.bar.value = row.file.size ? Math.min(1, Math.max(0, left / row.file.size)) : 1;
      left -= row.file.size;
    }
  }

  finish(row) {
    row.done = true;
    row.bar.value = 1;
    row.bar.hidden = true;
    row.state.replaceChildren(icon("check"));
    row.state.title = gettext("Added");
    const done = this.rows.filter((other) => other.done);
    if (done.length > SHOWN_DONE) done[0].element.remove();
  }

  refuse(row, reason) {
    row.refused = true;
    row.bar.hidden = true;
    row.state.replaceChildren(icon("circle-alert"));
    row.element.append(h("span", { class: "problem" }, reason));
    this.list.prepend(row.element);
  }

  fail(row, reason, mayRetry) {
    row.failed = true;
    row.mayRetry = mayRetry;
    row.bar.value = 0;
    row.state.replaceChildren(icon("circle-alert"));
    row.element.append(h("span", { class: "problem" }, reason));
    this.list.prepend(row.element);
  }

  again() {
    for (const row of this.rows.filter((other) => other.failed && other.mayRetry)) {
      row.failed = false;
      row.element.querySelector(".problem")?.remove();
      row.state.replaceChildren(bytes(row.file.size));
    }
    this.run();
  }

  /** Forget what is finished and hide the panel. */
  close() {
    if (this.running) return;
    this.rows = [];
    this.list.replaceChildren();
    this.panel.hidden = true;
  }

  say() {
    const done = this.rows.filter((row) => row.done).length;
    const bad = this.rows.filter((row) => row.refused || row.failed).length;
    const all = this.rows.length;
    let text;
    if (this.running) text = interpolate(gettext("%s of %s files sent"), [done + bad, all]);
    else {
      text = interpolate(ngettext("%s file added", "%s files added", done), [done]);
      if (bad) text += ` · ${interpolate(ngettext("%s refused", "%s refused", bad), [bad])}`;
      announce(text);
    }
    this.title.textContent = text;
    this.retry.hidden = this.running || !this.rows.some((row) => row.failed && row.mayRetry);
  }
}
