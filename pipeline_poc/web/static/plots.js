/** The plots: samples over time, drawn by uPlot; told in words and as a table for those who can't see them. */

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { make, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";

const SAMPLES_KEPT = 900;
const SAMPLES_LISTED = 12;
/** Opacity under a line, as the end of a colour in hexadecimal. */
const FILL_ALPHA = "22";
const SPAN_MIN_S = 60;
const WORDS_EVERY_MS = 5_000;

const DECADES = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];
/** Steps between the marks of an axis: whole numbers, and for times whole units. */
const STEPS = {
  count: DECADES.flatMap((decade) => [decade, 2 * decade, 5 * decade]),
  duration: [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30, 60, 120, 360, 720].map((minutes) => minutes * 60), ...DECADES.map((days) => days * 86400)],
};

/** Samples by time, the oldest first. */
export class History {
  samples = [];

  /** Take samples; those that are here already, or come late, find their place. */
  add(samples) {
    if (!samples.length) return;
    const byTime = new Map([...this.samples, ...samples].map((sample) => [sample.at, sample]));
    this.samples = [...byTime.values()].sort((one, other) => one.at - other.at).slice(-SAMPLES_KEPT);
  }
}

/** One plot, in a figure whose `data-plot` names the value and `data-as` its format. */
export class Plot {
  #chart = null;
  #samples = [];
  #wordsAt = 0;

  constructor(figure) {
    this.name = figure.dataset.plot;
    this.title = figure.querySelector("h3").textContent;
    this.as = format[figure.dataset.as];
    this.label = figure.dataset.as === "duration" ? format.brief : format.short;
    this.steps = STEPS[figure.dataset.as];
    this.box = figure.querySelector(".plot");
    this.pointed = figure.querySelector(".pointed");
    this.details = figure.querySelector("details");
    this.rows = make("tbody");
    const head = make("tr", {}, make("th", { scope: "col" }, "Time"), make("th", { scope: "col", class: "number" }, this.title));
    this.details.append(
      make("table", {}, make("caption", {}, `The last ${SAMPLES_LISTED} samples, the newest first`), make("thead", {}, head), this.rows),
    );
    this.details.addEventListener("toggle", () => this.#list());
    new ResizeObserver(() => this.#chart?.setSize(this.#size())).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    this.#draw();
  }

  show(samples) {
    this.#samples = samples;
    this.#chart.setData(this.#data());
    this.#list();
    if (Date.now() - this.#wordsAt < WORDS_EVERY_MS) return;
    this.#wordsAt = Date.now();
    setAttribute(this.box, "aria-label", this.#words());
    setAttribute(this.box, "data-samples", samples.length);
  }

  #data() {
    return [this.#samples.map((sample) => sample.at), this.#samples.map((sample) => sample[this.name])];
  }

  #size() {
    return { width: Math.max(this.box.clientWidth, 120), height: Math.max(this.box.clientHeight, 80) };
  }

  #draw() {
    const style = getComputedStyle(this.box);
    const [line, ink, grid] = ["--line", "--muted", "--rule"].map((name) => style.getPropertyValue(name).trim());
    const axis = { stroke: ink, font: `11px ${style.fontFamily}`, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    this.#chart?.destroy();
    this.#chart = new uPlot(
      {
        ...this.#size(),
        padding: [8, 20, 0, 0],
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, y: false, points: { size: 7 }, sync: { key: "pipeline" } },
        scales: {
          x: { range: (_, min, max) => timeRange(min, max) },
          y: { range: { min: { pad: 0, hard: 0, soft: 0, mode: 1 }, max: { pad: 0.1, soft: 2, mode: 1 } } },
        },
        axes: [
          { ...axis, size: 26, gap: 4, space: 64, values: (_, splits, __, ___, step) => splits.map((at) => timeLabel(at, step)) },
          { ...axis, size: 52, gap: 4, space: 32, incrs: this.steps, values: (_, splits) => splits.map(this.label) },
        ],
        series: [{}, { stroke: line, fill: `${line}${FILL_ALPHA}`, width: 1.5, points: { show: false } }],
        hooks: { setCursor: [(chart) => this.#point(chart.cursor.idx)] },
      },
      this.#data(),
      this.box,
    );
  }

  #point(index) {
    const sample = this.#samples[index];
    setText(this.pointed, sample ? `${format.atClock(sample.at * 1000)}  ${this.as(sample[this.name])}` : "");
  }

  #words() {
    const known = this.#samples.filter((sample) => format.isKnown(sample[this.name]));
    if (!known.length) return `${this.title}: no samples yet`;
    const values = known.map((sample) => sample[this.name]);
    const span = format.duration(Math.max(1, Math.round(this.#samples.at(-1).at - this.#samples[0].at)));
    const now = this.#samples.at(-1)[this.name];
    return (
      `${this.title} over the last ${span}: now ${format.isKnown(now) ? this.as(now) : "unknown"}, ` +
      `lowest ${this.as(Math.min(...values))}, highest ${this.as(Math.max(...values))}`
    );
  }

  #list() {
    if (!this.details.open) return;
    const last = this.#samples.slice(-SAMPLES_LISTED).reverse();
    while (this.rows.rows.length > last.length) this.rows.lastElementChild.remove();
    while (this.rows.rows.length < last.length) {
      this.rows.append(make("tr", {}, make("th", { scope: "row" }), make("td", { class: "number" })));
    }
    last.forEach((sample, index) => {
      const [time, value] = this.rows.rows[index].cells;
      setText(time, format.atClock(sample.at * 1000));
      setText(value, this.as(sample[this.name]));
    });
  }
}

function timeRange(min, max) {
  if (min === null || max === null) return [Date.now() / 1000 - SPAN_MIN_S, Date.now() / 1000];
  return [Math.min(min, max - SPAN_MIN_S), max];
}

function timeLabel(at, step) {
  return step < 60 ? format.atClock(at * 1000) : format.atMinute(at * 1000);
}
