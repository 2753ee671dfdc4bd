// @ts-check
// One card a link: what it is now, what it was, and how it does.
import { make, setText } from "./dom.js";
import { lasting, stateWord, tone } from "./format.js";
import { Plots } from "./plots.js";
import { Timeline } from "./timeline.js";

const DAY = 86_400;

/** Why a link is down and how its attempts do, or why it was down last. @param {any} link */
export function why(link) {
  if (link.state === "up") return link.reason ? `Last outage: ${sentence(link.reason, link.detail)}` : "";
  const outage = sentence(link.reason, link.detail);
  const failed = sentence(link.attempt_reason, link.attempt_detail);
  const next = link.next_attempt_seconds === null ? "" : `, next attempt in ${Math.max(0, link.next_attempt_seconds).toFixed(1)} s`;
  const tries = link.attempts ? `attempt ${link.attempts}${next}` : "";
  return [outage, failed === outage ? "" : failed, tries].filter(Boolean).join(" · ");
}

/** @param {string | null} reason @param {string | null} detail */
function sentence(reason, detail) {
  return [reason, detail].filter(Boolean).join(": ");
}

const EXPIRES = 14 * DAY;

/** @param {any} link */
function facts(link) {
  return [
    link.instance && `at ${link.instance}`,
    link.role === "dialer" ? "we dial" : "they dial",
    link.address,
    link.peer_version,
    link.compressed && "compressed",
    link.required && "required",
  ].filter(Boolean).join(" · ");
}

/** @param {number | null} expires seconds */
function certificate(expires) {
  if (expires === null || expires === undefined) return "";
  return expires < 0 ? "certificate expired" : `certificate ${lasting(expires)}`;
}

export class LinkCard {
  /** @param {string} peer @param {() => Promise<any>} history of this link, or null */
  constructor(peer, history) {
    this.state = make("span", { className: "state" });
    this.since = make("span", { className: "since" });
    this.facts = make("span", { className: "facts" });
    this.certificate = make("span", { className: "facts certificate" });
    this.why = make("p", { className: "why" });
    this.day = new Timeline("24 hours", DAY, ["24 h ago", "18 h", "12 h", "6 h", "now"]);
    this.hour = new Timeline("1 hour", 3600, ["60 min ago", "45 min", "30 min", "15 min", "now"]);
    this.plots = new Plots(history);
    const title = make("h2", {}, peer, this.state, this.since);
    this.element = make(
      "article",
      { className: "card link", id: `link-${peer}`, dataset: { peer } },
      make("header", {}, title, make("span", {}, this.facts, this.certificate)),
      this.why,
      this.day.element,
      this.hour.element,
      this.plots.element,
    );
    /** @type {any} */
    this.link = null;
    this.shownAt = 0;
    /** When it last left `up`, in milliseconds; null while it is. @type {number | null} */
    this.fell = null;
  }

  /** Take what is true of the link at `at` (milliseconds). @param {any} link @param {number} at */
  show(link, at) {
    this.link = link;
    this.shownAt = at;
    // By the node's count, since this host's clock may be another one.
    if (link.state === "up" || link.state === "unknown") this.fell = null;
    else if (typeof link.down_seconds === "number") this.fell = at - link.down_seconds * 1000;
    else this.fell ??= at - link.since_seconds * 1000;
    this.element.dataset.tone = tone(link.state);
    this.element.dataset.state = link.state;
    setText(this.state, stateWord(link.state));
    setText(this.facts, facts(link));
    const expires = link.certificate_expires_seconds;
    setText(this.certificate, certificate(expires));
    this.certificate.dataset.tone = expires !== null && expires < EXPIRES ? "bad" : "";
    setText(this.why, why(link));
    this.why.title = this.why.textContent;
    this.age(at);
  }

  /** Let the clock run on between two answers. @param {number} now milliseconds */
  age(now) {
    if (!this.link) return;
    const since = this.link.since_seconds + (now - this.shownAt) / 1000;
    setText(this.since, this.fell === null ? `for ${lasting(since)}` : `down for ${lasting((now - this.fell) / 1000)}`);
  }

  /** @param {any[]} outages of this link @param {any} available its availability, or undefined @param {number} now milliseconds */
  history(outages, available, now) {
    const measured = available?.measured ?? [];
    this.day.draw(outages, measured, available?.day ?? null, now);
    this.hour.draw(outages, measured, available?.hour ?? null, now);
  }
}
