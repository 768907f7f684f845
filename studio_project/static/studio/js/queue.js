/** The queue page: its lists fetch themselves again when the queue changes, at most once a second. */

import { on, watch } from "./live.js";

let timer = 0;

function refresh() {
  clearTimeout(timer);
  timer = setTimeout(() => htmx.trigger("#queue-lists", "refresh"), 1000);
}

on(["queue.changed"], refresh);
document.addEventListener("studio:job-final", refresh);
watch(refresh);
