// @ts-check
// What is seen before the cards: what needs an operator, all links at a glance, the named consumers.
import { byId, make, setText } from "./dom.js";
import { count, lasting, size, stateWord, tone } from "./format.js";

/** With more links than this a card is shown only where its link is down, or was chosen; for so many that are down. */
export const MANY = 8;

/** From so many links on there is an overview. */
const FROM = 4;

const SHOWN = 5;

/** Links and consumers that are drawn, the worst first: thousands would take the page's whole second. */
const DRAWN = 400;
const CONSUMERS = 50;
const SKEW = 5; // seconds, as in `linkd status --check`
const ORDER = { bad: 0, warn: 1, off: 2, good: 3 };

/** The links, those that are not up first, the others as they are configured. @param {any[]} links */
export function byState(links) {
  const rank = (/** @type {any} */ { state, required }) => ORDER[tone(state)] * 2 + (required ? 0 : 1);
  return links.map((link, at) => ({ link, at })).sort((a, b) => rank(a.link) - rank(b.link) || a.at - b.at).map(({ link }) => link);
}

export class Overview {
  /** @param {(peer: string) => void} choose called with the link whose card is wanted */
  constructor(choose) {
    this.list = byId("index-links");
    this.filter = byId("filter");
    this.choose = choose;
    /** @type {any[]} */
    this.links = [];
    this.filter.addEventListener("input", () => this.show(this.links));
  }

  /** @param {any[]} links as in /v1/status */
  show(links) {
    this.links = links;
    byId("index").hidden = links.length < FROM;
    if (links.length < FROM) return;
    this.filter.hidden = links.length <= MANY;
    const wanted = this.filter.value.trim().toLowerCase();
    const found = byState(links).filter(({ peer }) => peer.includes(wanted));
    const shown = found.slice(0, DRAWN);
    shown.forEach((link, at) => this._draw(link, this.list.children[at] ?? this.list.appendChild(this._made())));
    while (this.list.childElementCount > shown.length) this.list.lastElementChild.remove();
    const up = links.filter(({ state }) => state === "up").length;
    const left = found.length - shown.length;
    setText(byId("index-count"), `${up} up, ${links.length - up} down${left ? `; ${count(left)} more: filter them` : ""}`);
  }

  _made() {
    const mark = make("a", {}, make("b"), make("span", { className: "what" }), make("span", { className: "waits" }));
    mark.addEventListener("click", () => this.choose(mark.dataset.peer));
    return mark;
  }

  /** @param {any} link @param {any} mark */
  _draw(link, mark) {
    const [name, what, waits] = mark.children;
    mark.href = `#link-${link.peer}`;
    mark.dataset.peer = link.peer;
    mark.dataset.tone = tone(link.state);
    setText(name, link.peer);
    mark.title = link.peer;
    setText(what, link.state === "up" ? lasting(link.since_seconds) : `${stateWord(link.state)} ${lasting(link.since_seconds)}`);
    setText(waits, link.backlog_records ? `${count(link.backlog_records)} waiting` : "");
  }
}

/** What an operator must know now. @param {any} status as in /v1/status */
export function warnings(status) {
  const { log, links } = status;
  const found = [];
  const bad = (/** @type {string} */ text) => found.push({ text, tone: "bad" });
  if (log.full) bad(`Publishes are refused: ${log.full}`);
  if (log.stalled_seconds) bad(`The disk has not finished a commit for ${lasting(log.stalled_seconds)}`);
  for (const text of [...(log.losses ?? []).slice(-3), ...(status.warnings ?? [])]) bad(text);
  for (const { peer, clock_skew_seconds: skew, large_messages_lost: narrow, nothing_passes: mute } of links) {
    if (Math.abs(skew ?? 0) > SKEW) bad(`The clock of ${peer} is ${lasting(Math.abs(skew))} ${skew > 0 ? "ahead of" : "behind"} this host's`);
    if (narrow) bad(`Small messages pass to ${peer}, large ones do not: MTU?`);
    if (mute) bad(`Nothing passes to ${peer}: its receive has no channel of this node's send`);
  }
  const refused = status.refused ?? [];
  for (const { claimed, address, reason, detail, count: times, seconds_ago: ago } of refused.slice(0, SHOWN)) {
    const who = claimed ? `${claimed} at ${address}` : address;
    const often = times > 1 ? `, ${count(times)} times` : "";
    found.push({ text: `Refused ${who}, ${lasting(ago)} ago${often}: ${detail}`, tone: reason === "duplicate" ? "bad" : "quiet" });
  }
  return found;
}

/** @param {any} status */
export function showWarnings(status) {
  const found = warnings(status);
  const list = byId("warnings");
  list.hidden = found.length === 0;
  found.forEach(({ text, tone: how }, at) => {
    const line = list.children[at] ?? list.appendChild(make("li"));
    line.dataset.tone = how;
    setText(line, text);
  });
  while (list.childElementCount > found.length) list.lastElementChild.remove();
}

/** @param {any} status */
export function showConsumers({ consumers, log }) {
  byId("consumers").hidden = consumers.length === 0;
  const body = byId("consumers-list");
  const shown = [...consumers].sort((a, b) => b.lag_records - a.lag_records).slice(0, CONSUMERS);
  const left = consumers.length - shown.length;
  setText(byId("consumers-title"), `Named consumers${left ? `, the ${CONSUMERS} furthest behind of ${count(consumers.length)}` : ""}`);
  shown.forEach((/** @type {any} */ { owner, name, next, lag_records: lag }, /** @type {number} */ at) => {
    const row = body.children[at] ?? body.appendChild(make("tr", {}, make("th", { scope: "row" }), make("td"), make("td"), make("td")));
    [owner ? `${owner}/${name}` : name, count(lag), count(next), count(log.next)].forEach((text, column) => setText(row.children[column], text));
    row.dataset.behind = String(lag > 0);
  });
  while (body.childElementCount > shown.length) body.lastElementChild.remove();
}

/** What waits for a peer. @param {any} link */
export function waiting({ backlog_bytes: bytes, backlog_age_seconds: age }) {
  return age ? `records, oldest ${lasting(age)}` : `records, ${size(bytes)}`;
}
