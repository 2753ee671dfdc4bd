// @ts-check
// The changes of the links and of the node, newest first, from before the page was opened too.
import { byId, make } from "./dom.js";
import { clock, tone } from "./format.js";

const SHOWN = 200;
const KEPT = 2000;
const STEPS = ["waiting", "connecting", "opening", "resuming"];

export class EventLog {
  constructor() {
    this.list = byId("events");
    this.newest = "";
    /** @type {any[]} */
    this.events = [];
    /** The highest number of the events that are here. */
    this.last = 0;
  }

  /** Take the events above `last`, and show all. @param {any[]} events oldest first */
  add(events) {
    const again = new Set(events.filter(({ count }) => count > 1).map(key));
    // An event that covers several attempts comes again, under a new number.
    this.events = [...this.events.filter((event) => !again.has(key(event))), ...events].slice(-KEPT);
    this.last = this.events.at(-1)?.number ?? this.last;
    const latest = folded(this.events).slice(-SHOWN).reverse();
    const mark = latest.length > 0 ? `${latest[0].number} ${latest[0].time} ${latest.length}` : "none";
    if (mark === this.newest) return;
    this.newest = mark;
    if (latest.length === 0) this.list.replaceChildren(make("li", { className: "none" }, "Nothing has changed yet."));
    else this.list.replaceChildren(...latest.map(line));
  }

  /** The node's numbers have begun again: its state directory is another one. */
  clear() {
    this.events = [];
    this.last = 0;
  }
}

/** @param {any} event */
const key = ({ time, peer, event, reason }) => `${time} ${peer} ${event} ${reason}`;

/**
 * Leave out the steps of attempts, of which an outage of an hour has thousands; show their number instead.
 * @param {any[]} events
 */
function folded(events) {
  /** @type {Map<string, number>} */
  const attempts = new Map();
  const known = new Set();
  const kept = [];
  for (const event of events) {
    const step = event.peer !== null && event.old !== "up" && STEPS.includes(event.new);
    const made = attempts.get(event.peer) ?? 0;
    // Of a link that was never up the first failure is all that there is to see.
    if (step && (known.has(event.peer) || !event.reason)) attempts.set(event.peer, made + (event.new === "connecting" ? (event.count ?? 1) : 0));
    else {
      known.add(event.peer);
      kept.push(made > 1 ? { ...event, detail: [event.detail, `${made} attempts`].filter(Boolean).join(", ") } : event);
      attempts.delete(event.peer);
    }
  }
  return kept;
}

/** @param {any} event */
function line(event) {
  const at = Date.parse(event.time);
  const to = make("span", { className: "to", dataset: { tone: tone(event.new ?? "") } }, event.new ?? event.event);
  const change = make("span", { className: "change" }, event.old ? `${event.old} → ` : "", to, event.reason ? ` · ${event.reason}` : "");
  const item = make("li", {}, make("time", { dateTime: event.time, title: event.time }, clock(at)), make("i", {}, event.peer ?? "node"), change);
  if (event.detail) item.append(make("span", { className: "detail" }, event.detail));
  return item;
}
