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
    link.peer_version && `version ${link.peer_version}`,
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
      { className: "card link", dataset: { peer } },
      make("header", {}, title, this.facts),
      this.why,
      this.day.element,
      this.hour.element,
      this.plots.element,
    );
    /** @type {any} */
    this.link = null;
    this.told = 0;
  }

  /** Take what is true of the link at `at` (milliseconds). @param {any} link @param {number} at */
  tell(link, at) {
    this.link = link;
    this.told = at;
    this.element.dataset.tone = tone(link.state);
    this.element.dataset.state = link.state;
    say(this.state, link.state);
    say(this.facts, facts(link));
    say(this.why, why(link));
    this.age(at);
  }

  /** Let the clock run on between two answers. @param {number} now milliseconds */
  age(now) {
    if (this.link) say(this.since, `for ${lasting(this.link.since_seconds + (now - this.told) / 1000)}`);
  }

  /** @param {any[]} outages of this link @param {number} now milliseconds */
  history(outages, now) {
    this.day.draw(outages, now);
    this.hour.draw(outages, now);
  }
}
