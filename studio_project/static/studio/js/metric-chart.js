/** Loss, held-out loss and learning rate over the steps, with a table for screen readers. */

import { measure, number } from "./format.js";

const HEIGHT = 300;
const SMOOTHING = 0.95;
const TABLE_ROWS = 20;

function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** An exponential mean that does not start at zero; gaps stay gaps. */
export function smoothed(values, weight = SMOOTHING) {
  let mean = 0;
  let debias = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean * weight + (1 - weight) * value;
    debias = debias * weight + (1 - weight);
    return mean / debias;
  });
}

export class MetricChart {
  constructor(place, table) {
    this.place = place;
    this.table = table;
    this.clear();
    this.chart = null;
    new ResizeObserver(() => this.chart?.setSize({ width: this.place.clientWidth, height: HEIGHT })).observe(place);
    document.addEventListener("studio:theme", () => this.rebuild());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
    // Drawing for nobody costs the machine that also trains.
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.stale) this.draw();
    });
  }

  clear() {
    this.steps = [];
    this.losses = [];
    this.rates = [];
    this.heldOut = new Map();
  }

  /** Take the whole list of held-out losses. */
  setHeldOut(points) {
    const grown = points.length !== this.heldOut.size;
    this.heldOut = new Map(points.map((point) => [point.step, point.loss]));
    if (grown && this.steps.length) this.draw();
  }

  add(rows) {
    for (const row of rows) {
      this.steps.push(row.step);
      this.losses.push(row.loss);
      this.rates.push(row.learning_rate);
    }
    if (rows.length) this.draw();
  }

  draw() {
    if (document.hidden) {
      this.stale = true;
      return;
    }
    this.stale = false;
    const heldOut = this.steps.map((step) => this.heldOut.get(step) ?? null);
    const data = [this.steps, this.losses, smoothed(this.losses), this.rates, heldOut];
    if (this.chart) this.chart.setData(data);
    else this.build(data);
    this.fillTable();
  }

  rebuild() {
    this.chart?.destroy();
    this.chart = null;
    if (this.steps.length) this.draw();
  }

  build(data) {
    const muted = colour("--muted");
    const grid = { stroke: colour("--border"), width: 1 };
    const font = "12px system-ui, sans-serif";
    const axis = { stroke: muted, grid, ticks: grid, font };
    this.place.replaceChildren();
    const shown = (_chart, value) => (value === null || value === undefined ? "–" : measure(value));
    this.chart = new uPlot(
      {
        width: this.place.clientWidth,
        height: HEIGHT,
        scales: { x: { time: false }, rate: {} },
        axes: [
          { ...axis, values: (_chart, values) => values.map((value) => number(value)) },
          { ...axis, size: 56, values: (_chart, values) => values.map((value) => measure(value)) },
          { ...axis, scale: "rate", side: 1, size: 62, grid: { show: false }, values: (_chart, values) => values.map((value) => measure(value)) },
        ],
        series: [
          { label: gettext("Step"), value: (_chart, value) => number(value) },
          { label: gettext("Loss"), stroke: colour("--edge"), width: 1, alpha: 0.5, points: { show: false }, value: shown },
          { label: gettext("Smoothed"), stroke: colour("--accent"), width: 2, points: { show: false }, value: shown },
          { label: gettext("Learning rate"), scale: "rate", stroke: colour("--note"), width: 1, dash: [4, 4], points: { show: false }, value: shown },
          { label: gettext("Held-out loss"), stroke: colour("--good"), width: 2, spanGaps: true, points: { show: true, size: 7 }, value: shown },
        ],
      },
      data,
      this.place,
    );
  }

  /** The newest held-out loss of a step or one before it. */
  heldOutUpTo(step) {
    const known = [...this.heldOut.keys()].filter((one) => one <= step);
    return known.length ? this.heldOut.get(Math.max(...known)) : null;
  }

  fillTable() {
    const every = Math.max(1, Math.ceil(this.steps.length / TABLE_ROWS));
    const rows = [];
    for (let index = 0; index < this.steps.length; index += every) {
      const row = document.createElement("tr");
      const heldOut = this.heldOutUpTo(this.steps[index]);
      for (const value of [number(this.steps[index]), measure(this.losses[index]), measure(this.rates[index]), measure(heldOut)]) {
        const cell = document.createElement("td");
        cell.textContent = value;
        row.append(cell);
      }
      rows.push(row);
    }
    this.table.tBodies[0].replaceChildren(...rows);
  }
}
