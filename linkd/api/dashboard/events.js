// @ts-check
// The changes of the links, newest first.
import { byId, make } from "./dom.js";
import { clock, tone } from "./format.js";

const SHOWN = 200;

export class EventLog {
  constructor() {
    this.list = byId("events");
    this.newest = "";
  }

  /** Show these events. @param {any[]} events oldest first */
  show(events) {
    const latest = events.slice(-SHOWN).reverse();
    const mark = latest.length > 0 ? `${latest[0].number} ${latest[0].time} ${latest.length}` : "none";
    if (mark === this.newest) return;
    this.newest = mark;
    if (latest.length === 0) this.list.replaceChildren(make("li", { className: "none" }, "Nothing has changed since the node started."));
    else this.list.replaceChildren(...latest.map(line));
  }
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
