// @ts-check
// Four small plots a link: the last hour as the daemon kept it, then what is measured once a second.
import uPlot from "./uplot.js";
import { make, setText } from "./dom.js";
import { DASH, count, lasting, short } from "./format.js";
import { waiting } from "./overview.js";

/** A sample is a link of /v1/status with `at`, when it was taken, in seconds since 1970. @typedef {any} Sample */
/**
 * @typedef {object} Plot
 * @property {string} title
 * @property {(value: number) => string} axis
 * @property {((sample: Sample, before: Sample) => number | null)[]} series
 * @property {((history: any) => (number | null)[])[]} kept The same in /v1/peers/NAME/history.
 * @property {(sample: Sample, before: Sample) => [string, string]} figure The number, and what belongs to it.
 * @property {string} [about]
 * @property {boolean} [limited] The silence at which the link is given up is drawn.
 */

const KEPT = 3600; // seconds
const HEIGHT = 92;

/** Silence is drawn as the longest of so many seconds: between two pings it falls back to nothing. */
const STEP = 5;

/** Spans of time that the plots can show, in seconds. */
export const SPANS = [300, 3600];

/** What each link shows. @type {Plot[]} */
const PLOTS = [
  { title: "Round trip", axis: short, series: [(s) => s.rtt_seconds], kept: [(h) => h.rtt_seconds], figure: (s) => [short(s.rtt_seconds), ""] },
  {
    title: "Longest silence",
    axis: short,
    series: [(s) => s.silence_seconds],
    kept: [(h) => h.silence_seconds],
    figure: (s) => (s.state === "up" ? [short(s.silence_seconds), `of ${limit(s)} s`] : [lasting(s.last_heard_seconds), s.last_heard_seconds === null ? "nothing was ever heard" : "since the last byte"]),
    limited: true,
    about: `The longest within ${STEP} s; the dashed line is where the link is given up`,
  },
  {
    title: "Backlog",
    axis: count,
    series: [(s) => s.backlog_records],
    kept: [(h) => h.backlog_records],
    figure: (s) => [count(s.backlog_records), waiting(s)],
  },
  {
    title: "Records a second",
    axis: count,
    series: [(s, before) => rate(s, before, "sent_records"), (s, before) => rate(s, before, "received_records")],
    kept: [(h) => perStep(h, h.sent_records), (h) => perStep(h, h.received_records)],
    figure: (s, before) => [perSecond(rate(s, before, "sent_records")), `out, ${perSecond(rate(s, before, "received_records"))} in`],
  },
];

/** At so much silence the link is given up; before anything is known, by the defaults. @param {Sample} sample */
const limit = (sample) => sample?.silence_limit_seconds ?? (sample?.role === "listener" ? 7 : 10);

/** @param {any} history @param {(number | null)[]} counts */
const perStep = (history, counts) => counts.map((each) => (each === null ? null : each / history.step_seconds));

/** Records a second since the sample before; null after a restart of the node. */
function rate(sample, before, field) {
  if (!before || sample.at <= before.at || sample[field] < before[field]) return null;
  return (sample[field] - before[field]) / (sample.at - before.at);
}

const perSecond = (value) => (value === null ? DASH : count(value));

export class Plots {
  /** @param {() => Promise<any>} history Returns the link's /v1/peers/NAME/history, or null. */
  constructor(history) {
    this.history = history;
    /** @type {number[]} */
    this.times = [];
    this.panels = PLOTS.map((plot) => {
      const figure = make("span");
      const unit = make("small");
      const canvas = make("div", { className: "canvas", ariaHidden: "true" });
      const element = make("div", { className: "plot" }, make("h3", { title: plot.about ?? "" }, plot.title), make("div", { className: "figure" }, figure, " ", unit), canvas);
      return { plot, figure, unit, canvas, element, limit: 0, values: plot.series.map(() => /** @type {(number | null)[]} */ ([])), chart: /** @type {any} */ (null) };
    });
    this.element = make("div", { className: "plots" }, ...this.panels.map(({ element }) => element));
    this.before = null;
    this.span = SPANS[0];
    this.visible = false;
    this.filled = false;
    // Only what is near the screen is drawn.
    new IntersectionObserver(([entry]) => this.see(entry.isIntersecting), { rootMargin: "1500px" }).observe(this.element);
    new ResizeObserver(() => this._fit()).observe(this.element);
  }

  /** @param {boolean} visible */
  see(visible) {
    this.visible = visible;
    if (visible && !this.filled) this.fill();
    this.redraw();
  }

  /** Take what the daemon has kept in place of all before now: at the beginning, and where the page has slept. */
  async fill() {
    this.filled = true;
    const history = await this.history();
    const length = history?.rtt_seconds.length ?? 0;
    if (length === 0) return;
    const now = Date.now() / 1000;
    const old = history.rtt_seconds.map((/** @type {any} */ _, /** @type {number} */ at) => now - (length - 1 - at) * history.step_seconds);
    // What was measured by the page itself within the last step stays.
    const from = this.times.findIndex((at) => at > old[length - 1]);
    const rest = from < 0 ? [] : this.times.slice(from);
    for (const { plot, values } of this.panels) {
      plot.kept.forEach((read, index) => (values[index] = [...read(history), ...(from < 0 ? [] : values[index].slice(from))]));
    }
    this.times = [...old, ...rest];
    this.redraw();
  }

  /** @param {any} link as in /v1/status @param {number} at seconds since 1970 */
  add(link, at) {
    // Asked again because something changed: too near to the sample before for a rate.
    if (this.before && at - this.before.at < 0.7) return;
    const sample = { ...link, at };
    this.times.push(at);
    for (const panel of this.panels) {
      const { plot, figure, unit, values } = panel;
      plot.series.forEach((read, index) => values[index].push(read(sample, this.before) ?? null));
      if (plot.limited) this._silence(panel, sample);
      const [main, rest] = plot.figure(sample, this.before);
      setText(figure, main);
      setText(unit, rest);
    }
    const old = this.times.findIndex((each) => each > at - KEPT);
    if (old > 60) {
      this.times.splice(0, old);
      for (const { values } of this.panels) for (const each of values) each.splice(0, old);
    }
    this.before = sample;
    this.redraw();
  }

  /** Keep the longest silence of the last seconds, and the limit. @param {any} panel @param {Sample} sample */
  _silence(panel, sample) {
    panel.limit = limit(sample);
    panel.element.dataset.tone = sample.state !== "up" || sample.silence_seconds > 0.8 * panel.limit ? "bad" : "";
    const [longest] = panel.values;
    const last = longest.length - 1;
    this.recent = [...(this.recent ?? []), { at: sample.at, silence: longest[last] }].filter(({ at }) => at > sample.at - STEP);
    if (longest[last] !== null) longest[last] = Math.max(...this.recent.map(({ silence }) => silence ?? 0));
    else this.recent = [];
  }

  /** @param {boolean} [anew] after the theme changed */
  redraw(anew = false) {
    for (const panel of this.panels) {
      if (anew) panel.chart = panel.chart?.destroy();
      if (!this.visible || this.times.length === 0 || !panel.canvas.clientWidth) continue;
      panel.chart ??= chart(panel);
      panel.chart.span = this.span;
      panel.chart.setData([this.times, ...panel.values], false);
      const end = this.times[this.times.length - 1];
      panel.chart.setScale("x", { min: end - this.span, max: end });
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

function chart(panel) {
  const { plot, canvas } = panel;
  const quiet = colour(canvas, "--quiet");
  const line = colour(canvas, "--line");
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const strokes = [colour(canvas, "--plot"), colour(canvas, "--plot-2")];
  const axis = { stroke: quiet, font, ticks: { show: false }, grid: { stroke: line, width: 1 } };
  const bad = colour(canvas, "--bad");
  const top = (/** @type {number} */ max) => (plot.limited ? Math.max(panel.limit * 1.25, max * 1.05) : Math.max(max * 1.15, plot.axis === count ? 1 : 0) || 1);
  const marks = (/** @type {any} */ u) => {
    const step = (u.span ?? SPANS[0]) === SPANS[0] ? 120 : 1200;
    return (u.width < 190 ? [2, 0] : [2, 1, 0]).map((steps) => u.scales.x.max - steps * step);
  };
  const Chart = /** @type {any} */ (uPlot);
  return new Chart(
    {
      width: canvas.clientWidth || 200,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      padding: [6, 14, 0, 0],
      scales: { x: { time: true }, y: { range: (_u, _min, max) => [0, top(max)] } },
      axes: [
        { ...axis, grid: { show: false }, size: 18, gap: 3, space: 60, values: (u, splits) => splits.map((at) => ago(u.scales.x.max - at)), splits: marks },
        { ...axis, size: 52, gap: 4, space: 28, values: (_u, splits) => splits.map((value) => (plot.axis === count && value % 1 ? "" : plot.axis === short && value === 0 ? "0" : plot.axis(value))) },
      ],
      series: [{}, ...plot.series.map((_read, index) => ({ stroke: strokes[index], width: 1.5, points: { show: false }, spanGaps: false }))],
      hooks: plot.limited ? { draw: [(/** @type {any} */ u) => drawLimit(u, panel.limit, bad, font)] } : {},
    },
    [[], ...plot.series.map(() => [])],
    canvas,
  );
}

/** Draw the silence at which the link is given up. */
function drawLimit(u, seconds, stroke, font) {
  if (!seconds) return;
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio;
  const y = Math.round(u.valToPos(seconds, "y", true));
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = stroke;
  ctx.lineWidth = ratio;
  ctx.setLineDash([4 * ratio, 3 * ratio]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.font = font.replace("11px", `${11 * ratio}px`);
  ctx.textAlign = "right";
  ctx.textBaseline = "bottom";
  ctx.fillText(`down at ${seconds} s`, bbox.left + bbox.width, y - 2 * ratio);
  ctx.restore();
}

const ago = (seconds) => (seconds < 1 ? "now" : `−${Math.round(seconds / 60)} min`);
