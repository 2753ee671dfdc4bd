// @ts-check
// What is measured now, as it moves: four small plots a link, fed once a second.
import uPlot from "./uplot.js";
import { make, say } from "./dom.js";
import { DASH, count, short, size } from "./format.js";

/** A sample is a link of /v1/status with `at`, when it was taken, in seconds since 1970. @typedef {any} Sample */
/**
 * @typedef {object} Plot
 * @property {string} title
 * @property {(value: number) => string} axis
 * @property {((sample: Sample, before: Sample) => number | null)[]} series
 * @property {(sample: Sample, before: Sample) => [string, string]} figure The number, and what belongs to it.
 */

const KEPT = 600; // samples, one a second
const HEIGHT = 84;

/** What each link shows. @type {Plot[]} */
const PLOTS = [
  { title: "Round trip", axis: short, series: [(s) => s.rtt_seconds], figure: (s) => [short(s.rtt_seconds), ""] },
  { title: "Silence", axis: short, series: [(s) => s.silence_seconds], figure: (s) => [short(s.silence_seconds), ""] },
  {
    title: "Backlog",
    axis: count,
    series: [(s) => s.backlog_records],
    figure: (s) => [count(s.backlog_records), `records, ${size(s.backlog_bytes)}`],
  },
  {
    title: "Throughput, records/s",
    axis: count,
    series: [(s, before) => rate(s, before, "sent_records"), (s, before) => rate(s, before, "received_records")],
    figure: (s, before) => [perSecond(rate(s, before, "sent_records")), `out, ${perSecond(rate(s, before, "received_records"))} in`],
  },
];

/** Records a second since the sample before; null after a restart of the node. */
function rate(sample, before, field) {
  if (!before || sample.at <= before.at || sample[field] < before[field]) return null;
  return (sample[field] - before[field]) / (sample.at - before.at);
}

const perSecond = (value) => (value === null ? DASH : count(value));

export class Plots {
  constructor() {
    /** @type {number[]} */
    this.times = [];
    this.panels = PLOTS.map((plot) => {
      const figure = make("span");
      const unit = make("small");
      const canvas = make("div", { className: "canvas", ariaHidden: "true" });
      const element = make("div", { className: "plot" }, make("h3", {}, plot.title), make("div", { className: "figure" }, figure, " ", unit), canvas);
      return { plot, figure, unit, canvas, element, values: plot.series.map(() => /** @type {(number | null)[]} */ ([])), chart: /** @type {any} */ (null) };
    });
    this.element = make("div", { className: "plots" }, ...this.panels.map(({ element }) => element));
    this.before = null;
    this.visible = false;
    // Only what is on the screen is drawn.
    new IntersectionObserver(([entry]) => {
      this.visible = entry.isIntersecting;
      this.redraw();
    }).observe(this.element);
    new ResizeObserver(() => this._fit()).observe(this.element);
  }

  /** @param {any} link as in /v1/status @param {number} at seconds since 1970 */
  add(link, at) {
    // Asked again because something changed: too near to the sample before for a rate.
    if (this.before && at - this.before.at < 0.7) return;
    const sample = { ...link, at };
    this.times.push(at);
    for (const { plot, figure, unit, values } of this.panels) {
      plot.series.forEach((read, index) => values[index].push(read(sample, this.before) ?? null));
      const [main, rest] = plot.figure(sample, this.before);
      say(figure, main);
      say(unit, rest);
    }
    if (this.times.length > KEPT) {
      this.times.shift();
      for (const { values } of this.panels) for (const each of values) each.shift();
    }
    this.before = sample;
    this.redraw();
  }

  /** @param {boolean} [anew] after the theme changed */
  redraw(anew = false) {
    for (const panel of this.panels) {
      if (anew) panel.chart = panel.chart?.destroy();
      if (!this.visible || this.times.length === 0) continue;
      panel.chart ??= chart(panel);
      panel.chart.setData([this.times, ...panel.values], false);
      const end = this.times[this.times.length - 1];
      panel.chart.setScale("x", { min: end - 300, max: end });
    }
  }

  _fit() {
    for (const { chart: it, canvas } of this.panels) {
      if (it && canvas.clientWidth && it.width !== canvas.clientWidth) it.setSize({ width: canvas.clientWidth, height: HEIGHT });
    }
  }
}

/** A colour of the style sheet as the canvas needs it. */
function colour(element, name) {
  element.style.color = `var(${name})`;
  const resolved = getComputedStyle(element).color;
  element.style.color = "";
  return resolved;
}

function chart({ plot, canvas }) {
  const quiet = colour(canvas, "--quiet");
  const line = colour(canvas, "--line");
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const strokes = [colour(canvas, "--plot"), colour(canvas, "--plot-2")];
  const axis = { stroke: quiet, font, ticks: { show: false }, grid: { stroke: line, width: 1 } };
  const Chart = /** @type {any} */ (uPlot);
  return new Chart(
    {
      width: canvas.clientWidth || 200,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      padding: [6, 14, 0, 0],
      scales: { x: { time: true }, y: { range: (_u, _min, max) => [0, max > 0 ? max * 1.15 : 1] } },
      axes: [
        { ...axis, grid: { show: false }, size: 18, gap: 3, space: 60, values: (u, splits) => splits.map((at) => ago(u.scales.x.max - at)), splits: (u) => (u.width < 190 ? [240, 0] : [240, 120, 0]).map((before) => u.scales.x.max - before) },
        { ...axis, size: 52, gap: 4, space: 28, values: (_u, splits) => splits.map((value) => (plot.axis === count && value % 1 ? "" : plot.axis === short && value === 0 ? "0" : plot.axis(value))) },
      ],
      series: [{}, ...plot.series.map((_read, index) => ({ stroke: strokes[index], width: 1.5, points: { show: false }, spanGaps: false }))],
    },
    [[], ...plot.series.map(() => [])],
    canvas,
  );
}

const ago = (seconds) => (seconds < 1 ? "now" : `−${Math.round(seconds / 60)} min`);
