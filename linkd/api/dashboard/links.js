// @ts-check
// One card a link: what it is now, what it was, and how it does.
import { make, say } from "./dom.js";
import { lasting, tone } from "./format.js";
import { Plots } from "./plots.js";
import { Timeline } from "./timeline.js";

const DAY = 86_400;

/** What a person is told of a link that is not up, or why it last fell. @param {any} link */
export function why(link) {
  if (link.state === "up") return link.reason ? `Last fell: ${sentence(link)}` : "";
  if (link.state === "rejected" || link.state === "diverged") return sentence(link);
  const next = link.next_attempt_seconds === null ? "" : `, next attempt in ${Math.max(0, link.next_attempt_seconds).toFixed(1)} s`;
  const tries = link.attempts ? ` · attempt ${link.attempts}${next}` : "";
  return sentence(link) + tries;
}

/** @param {any} link */
function sentence(link) {
  return [link.reason, link.detail].filter(Boolean).join(": ");
}

/** @param {any} link */
function facts(link) {
  const expires = link.certificate_expires_seconds;
  return [
    link.role === "dialer" ? "we dial" : "they dial",
    link.address,
    link.peer_version,
    expires === null ? null : expires < 0 ? "certificate expired" : `certificate ${lasting(expires)}`,
    link.required && "required",
  ].filter(Boolean).join(" · ");
}

export class LinkCard {
  /** @param {string} peer */
  constructor(peer) {
    this.state = make("span", { className: "state" });
    this.since = make("span", { className: "since" });
    this.facts = make("span", { className: "facts" });
    this.why = make("p", { className: "why" });
    this.day = new Timeline("24 hours", DAY, ["24 h ago", "18 h", "12 h", "6 h", "now"]);
    this.hour = new Timeline("1 hour", 3600, ["60 min ago", "45 min", "30 min", "15 min", "now"]);
    this.plots = new Plots();
    const title = make("h2", {}, peer, this.state, this.since);
    this.element = make(
      "article",
      { className: "card link", id: `link-${peer}`, dataset: { peer } },
      make("header", {}, title, this.facts),
      this.why,
      this.day.element,
      this.hour.element,
      this.plots.element,
    );
    /** @type {any} */
    this.link = null;
    this.told = 0;
    /** When it last left `up`, in milliseconds; null while it is. @type {number | null} */
    this.fell = null;
  }

  /** Take what is true of the link at `at` (milliseconds). @param {any} link @param {number} at */
  tell(link, at) {
    this.link = link;
    this.told = at;
    this.fell = link.state === "up" || link.state === "stopped" ? null : (this.fell ?? at - link.since_seconds * 1000);
    this.element.dataset.tone = tone(link.state);
    this.element.dataset.state = link.state;
    say(this.state, link.state);
    say(this.facts, facts(link));
    say(this.why, why(link));
    this.why.title = this.why.textContent;
    this.age(at);
  }

  /** Let the clock run on between two answers. @param {number} now milliseconds */
  age(now) {
    if (!this.link) return;
    const since = this.link.since_seconds + (now - this.told) / 1000;
    say(this.since, this.fell === null ? `for ${lasting(since)}` : `down for ${lasting((now - this.fell) / 1000)}`);
  }

  /** Learn from the events when this outage began: a link that is down changes state while it tries. @param {any[]} events oldest first */
  fellAsIn(events) {
    if (this.fell === null || !this.link) return;
    const last = events.findLast(({ peer, old }) => peer === this.link.peer && old === "up");
    if (last) this.fell = Math.min(this.fell, Date.parse(last.time));
  }

  /** The outage that goes on, as /v1/outages would tell it; null while the link is up. */
  openOutage() {
    if (this.fell === null) return null;
    const { peer, reason, attempts } = this.link;
    const began = new Date(this.fell).toISOString();
    return { peer, began, reason: reason ?? "down", noticed_after_seconds: null, down_seconds: null, attempts, replayed_records: 0, drained_seconds: null };
  }

  /** @param {any[]} outages of this link @param {number} now milliseconds */
  history(outages, now) {
    this.day.draw(outages, now);
    this.hour.draw(outages, now);
  }
}
