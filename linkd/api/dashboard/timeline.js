// @ts-check
// A strip of time with a link's outages as bars.
import { hint, make } from "./dom.js";
import { clock, lasting, percent, short } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 10_000; // of the drawing's own coordinates

/** @typedef {{from: number, to: number, outage: any}} Bar in milliseconds */

/**
 * The part of `outages` within [start, end], oldest first; one that goes on ends at `end`.
 * @param {any[]} outages @param {number} start @param {number} end @returns {Bar[]}
 */
export function bars(outages, start, end) {
  const found = [];
  for (const outage of outages) {
    const began = Date.parse(outage.began);
    const ended = outage.ongoing || outage.down_seconds === null ? end : began + outage.down_seconds * 1000;
    if (ended > start && began < end) found.push({ from: Math.max(began, start), to: Math.min(ended, end), outage });
  }
  return found.sort((a, b) => a.from - b.from);
}

/**
 * The parts of [start, end] that lie outside `measured`, in order: what is not known.
 * @param {[string, string][]} measured spans in order @param {number} start @param {number} end @returns {{from: number, to: number}[]}
 */
export function unknown(measured, start, end) {
  const found = [];
  let reached = start;
  for (const [began, ended] of measured) {
    const [from, to] = [Date.parse(began), Date.parse(ended)];
    if (from > reached && reached < end) found.push({ from: reached, to: Math.min(from, end) });
    reached = Math.max(reached, to);
  }
  // The last span ends when the list was asked for: a moment ago is known too.
  if (end - reached > 60_000) found.push({ from: reached, to: end });
  return found;
}

export class Timeline {
  /** @param {string} name @param {number} seconds @param {string[]} ticks */
  constructor(name, seconds, ticks) {
    this.seconds = seconds;
    this.name = name;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} 10`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("tabindex", "0");
    this.share = make("span", { className: "share" });
    const marks = make("span", { className: "ticks" }, ...ticks.map((tick) => make("span", {}, tick)));
    marks.ariaHidden = "true";
    this.element = make("div", { className: `strip ${seconds <= 3600 ? "hour" : "day"}` }, make("span", {}, name), this.svg, this.share, marks);
    /** @type {Bar[]} */
    this.bars = [];
    this.chosen = -1;
    this.start = 0;
    this.svg.addEventListener("pointermove", (event) => this._point(event));
    this.svg.addEventListener("pointerleave", () => this._choose(-1));
    this.svg.addEventListener("blur", () => this._choose(-1));
    this.svg.addEventListener("keydown", (event) => this._key(event));
  }

  /** @param {any[]} outages @param {[string, string][]} measured @param {number | null} available 0 to 1 @param {number} now milliseconds */
  draw(outages, measured, available, now) {
    this.start = now - this.seconds * 1000;
    this.bars = bars(outages, this.start, now);
    const scale = WIDTH / (this.seconds * 1000);
    /** @param {{from: number, to: number}} span */
    const draw = ({ from, to }) => {
      const rect = document.createElementNS(SVG, "rect");
      rect.setAttribute("x", String((from - this.start) * scale));
      rect.setAttribute("width", String(Math.max(1, (to - from) * scale)));
      rect.setAttribute("height", "10");
      return rect;
    };
    const drawn = this.bars.map(draw);
    drawn.forEach((rect, at) => this.bars[at].outage.drill && rect.classList.add("drill"));
    const grey = unknown(measured, this.start, now).map(draw);
    for (const rect of grey) rect.setAttribute("class", "unknown");
    this.svg.replaceChildren(...drawn, ...grey);
    if (this.chosen >= 0) this._choose(Math.min(this.chosen, drawn.length - 1), false);
    const share = available === null ? "not measured" : percent(available);
    const outageCount = `${this.bars.length} ${this.bars.length === 1 ? "outage" : "outages"}`;
    const text = `${this.name}: ${available === null ? share : `up ${share}`}, ${outageCount}`;
    if (this.svg.getAttribute("aria-label") === text) return;
    this.svg.setAttribute("aria-label", text);
    this.share.replaceChildren(make("b", {}, share), ` · ${outageCount}`);
  }

  /** @param {PointerEvent} event */
  _point(event) {
    const { left, width } = this.svg.getBoundingClientRect();
    const at = this.start + ((event.clientX - left) / width) * this.seconds * 1000;
    const near = (this.seconds * 1000 * 4) / width; // four pixels
    let best = -1;
    let distance = near;
    this.bars.forEach(({ from, to }, index) => {
      const away = at < from ? from - at : at > to ? at - to : 0;
      if (away < distance || (away === 0 && distance === 0)) [best, distance] = [index, away];
    });
    this._choose(best);
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this._choose(-1);
    if (step === undefined || this.bars.length === 0) return;
    event.preventDefault();
    const from = this.chosen < 0 && step < 0 ? this.bars.length : this.chosen;
    this._choose(Math.min(Math.max(0, from + step), this.bars.length - 1));
  }

  /** @param {number} index @param {boolean} [tell] */
  _choose(index, tell = true) {
    this.svg.children[this.chosen]?.classList.remove("chosen");
    this.chosen = index;
    this.svg.children[index]?.classList.add("chosen");
    if (!tell) return;
    if (index < 0) return hint(null);
    const { from, to, outage } = this.bars[index];
    const { left, top, width } = this.svg.getBoundingClientRect();
    const middle = ((from + to) / 2 - this.start) / (this.seconds * 1000);
    hint(describe(outage), left + middle * width, top);
  }
}

/** @param {any} outage */
export function describe(outage) {
  const { reason, noticed_after_seconds: noticed, down_seconds: down, attempts, replayed_records: replayed, drained_seconds: drained } = outage;
  const lasted = `down for ${down < 60 ? short(down) : lasting(down)}${outage.ongoing ? " so far" : ""}`;
  const lines = [lasted, `noticed after ${short(noticed)}, ${attempts} ${attempts === 1 ? "attempt" : "attempts"}`];
  if (outage.drill) lines.push("made by a drill");
  if (outage.never_up) lines.push("it had never been up");
  if (!outage.ongoing) lines.push(`${replayed} records sent again${drained === null ? "" : `, drained in ${short(drained)}`}`);
  return { title: `${clock(Date.parse(outage.began))} UTC · ${reason}`, lines };
}
