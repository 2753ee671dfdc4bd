// @ts-check
// The page: asks the node once a second, and hears changes of links the moment they happen.
import { Linkd } from "./linkd.js";
import { byId, setText } from "./dom.js";
import { EventLog } from "./events.js";
import { lasting, size } from "./format.js";
import { LinkCard } from "./links.js";
import { MessageBox } from "./messages.js";
import { MANY, Overview, byState, showConsumers, showWarnings } from "./overview.js";
import { SPANS } from "./plots.js";
import { askForToken, enter } from "./session.js";

const POLL = 1000;
/** How often durations are drawn: shown in whole seconds, they stay within one of the truth. */
const AGE = 250;
const HISTORY = 15_000;
const THEMES = ["system", "light", "dark"];

class Dashboard {
  constructor() {
    this.node = new Linkd({ url: new URL(".", location.href), status: true });
    this.events = new EventLog();
    this.messages = new MessageBox(this.node);
    /** @type {Map<string, LinkCard>} */
    this.cards = new Map();
    /** @type {any} */
    this.status = null;
    /** @type {any[]} */
    this.outages = [];
    /** @type {any[]} */
    this.available = [];
    this.asking = false;
    /** Links whose cards were asked for, where there are too many to show all. @type {Set<string>} */
    this.chosen = new Set();
    /** Seconds that the plots show. */
    this.plotSpan = SPANS[0];
    this.overview = new Overview((peer) => this.choose(peer));
    this.signedOut = false;
    /** @type {any} */
    this.drawn = null;
    /** @type {any} */
    this.showing = null;
    /** Since when the connection is lost, in milliseconds. @type {number | undefined} */
    this.lostAt = undefined;
    this.node.status.subscribe((status) => this.connection(status));
    this.node.addEventListener("link", (/** @type {any} */ event) => this.changed(event.detail));
    byId("retry").addEventListener("click", () => this.node.kick());
    theme(() => this.cards.forEach(({ plots }) => plots.redraw(true)));
    this.span();
    // Paper has no scrolling: what was never on the screen is drawn for it.
    addEventListener("beforeprint", () => this.print(true));
    addEventListener("afterprint", () => this.print(false));
  }

  async run() {
    await enter();
    await this.poll();
    await this.history();
    if (!this.signedOut) this.node.open();
    setInterval(() => this.age(), AGE);
    setInterval(() => this.tick(), POLL);
    setInterval(() => this.history(), HISTORY);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.cards.forEach(({ plots }) => plots.visible && plots.fill());
      this.tick();
    });
  }

  /** @param {string} path @returns {Promise<any>} null if it could not be fetched */
  async get(path) {
    const answer = await fetch(path, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(5000) }).catch(() => null);
    if (answer?.status === 401) this.signOut();
    return answer?.ok ? answer.json().catch(() => null) : null;
  }

  /** No session: ask for a token, and until there is one ask the node for nothing, which it would count as guessing. */
  signOut() {
    if (this.signedOut) return;
    this.signedOut = true;
    this.node.close();
    if (!this.status) setText(byId("headline"), "Sign in to see this node");
    askForToken(async () => {
      this.signedOut = false;
      this.node.open();
      await this.poll();
      await this.history();
    });
  }

  age() {
    const now = Date.now();
    for (const card of this.cards.values()) card.age(now);
  }

  tick() {
    this.connection(this.node.status.value);
    if (!document.hidden) this.poll();
  }

  async poll() {
    if (this.asking || this.signedOut) return;
    this.asking = true;
    const status = await this.get("v1/status").finally(() => (this.asking = false));
    if (status === null) return;
    if (status.log.id !== this.status?.log.id) this.events.clear();
    this.status = status;
    this.show();
    const at = Date.now() / 1000;
    for (const link of status.links) this.cards.get(link.peer)?.plots.add(link, at);
  }

  async history() {
    if (this.signedOut) return;
    const after = this.events.last;
    const [outages, events] = await Promise.all([this.get("v1/outages?since=86400"), this.get(`v1/events?after=${after}`)]);
    // Two answers can cross: each event is taken once.
    if (events && this.events.last === after) this.events.add(events.events);
    if (outages) {
      this.outages = outages.outages;
      this.available = outages.availability;
    }
    this.draw();
  }

  draw() {
    const now = Date.now();
    const began = performance.now();
    for (const [peer, card] of this.cards) this.drawCard(peer, card, now);
    performance.measure("linkd-history", { start: began });
  }

  /** @param {string} peer @param {LinkCard} card @param {number} now */
  drawCard(peer, card, now) {
    const mine = this.outages.filter((outage) => outage.peer === peer);
    card.history(mine, this.available.find((/** @type {any} */ one) => one.peer === peer), now);
  }

  /** A link changed: show it now, and fetch the rest. @param {any} change */
  changed(change) {
    const link = this.status?.links.find((/** @type {any} */ { peer }) => peer === change.peer);
    if (link) {
      Object.assign(link, { next_attempt_seconds: null }, change);
      // Many links can change at once: all are shown together.
      this.showing ??= setTimeout(() => {
        this.showing = null;
        this.show();
      }, 10);
    }
    clearTimeout(this.drawn);
    this.drawn = setTimeout(() => Promise.all([this.poll(), this.history()]), 150);
  }

  show() {
    const { node, version, uptime_seconds: uptime, log, links } = this.status;
    setText(byId("node"), node);
    setText(byId("about"), `linkd ${version} · running for ${lasting(uptime)}`);
    const fill = log.max_bytes ? log.bytes / log.max_bytes : 0;
    setText(byId("log-text"), `${size(log.bytes)} of ${size(log.max_bytes)}`);
    byId("log-fill").style.scale = `${Math.min(1, fill)} 1`;
    byId("log-fill").dataset.tone = fill >= 0.8 ? "bad" : "";
    const now = Date.now();
    this.cardsOf(links, now);
    for (const [peer, card] of this.cards) {
      if (links.some((/** @type {any} */ each) => each.peer === peer)) continue;
      card.element.remove();
      this.cards.delete(peer);
    }
    this.overview.show(links);
    showWarnings(this.status);
    showConsumers(this.status);
    document.body.dataset.loaded = "true";
    this.headline(links);
    this.messages.show(links);
  }

  /** Show the cards: of many links the first that are down and those that were chosen. @param {any[]} links @param {number} now */
  cardsOf(links, now) {
    const many = links.length > MANY;
    const bad = new Set(byState(links).filter(({ state }) => state !== "up").slice(0, MANY));
    const shown = many ? byState(links).filter((link) => bad.has(link) || this.chosen.has(link.peer)) : links;
    const wanted = new Set(shown.map(({ peer }) => peer));
    for (const link of links) {
      const card = this.cards.get(link.peer) ?? (wanted.has(link.peer) ? this.card(link.peer) : null);
      if (!card) continue;
      card.show(link, now);
      card.element.hidden = !wanted.has(link.peer);
    }
    if (!many) return;
    // Down ones first; moved only where the order has changed.
    const list = byId("links");
    shown.forEach(({ peer }, at) => {
      const { element } = this.card(peer);
      if (list.children[at] !== element) list.insertBefore(element, list.children[at] ?? null);
    });
    byId("links").dataset.empty = String(shown.length === 0);
  }

  /** @param {string} peer */
  card(peer) {
    let card = this.cards.get(peer);
    if (!card) {
      card = new LinkCard(peer, () => this.get(`v1/peers/${encodeURIComponent(peer)}/history`));
      card.plots.span = this.plotSpan;
      this.cards.set(peer, card);
      byId("links").append(card.element);
      this.drawCard(peer, card, Date.now());
    }
    return card;
  }

  /** Show one link's card among many. @param {string} peer */
  choose(peer) {
    this.chosen.add(peer);
    this.show();
  }

  /** Draw all plots, in ink for white paper; afterwards as before. @param {boolean} begins */
  print(begins) {
    const root = document.documentElement;
    if (begins) this.theme = root.dataset.theme;
    if (begins) root.dataset.theme = "light";
    else if (this.theme) root.dataset.theme = this.theme;
    else delete root.dataset.theme;
    for (const { plots } of this.cards.values()) {
      plots.visible ||= begins;
      plots.redraw(true);
    }
  }

  /** How far back the plots go: a button goes through the spans. */
  span() {
    const button = byId("span");
    button.addEventListener("click", () => {
      this.plotSpan = SPANS[(SPANS.indexOf(this.plotSpan) + 1) % SPANS.length];
      setText(button, `Plots: ${this.plotSpan < 3600 ? `${this.plotSpan / 60} min` : "1 hour"}`);
      for (const { plots } of this.cards.values()) {
        plots.span = this.plotSpan;
        plots.redraw();
      }
    });
  }

  /** @param {any[]} links */
  headline(links) {
    const down = links.filter(({ state }) => state !== "up");
    const some = down.some(({ state }) => state === "unknown") ? "down or unknown" : "down";
    const text = links.length === 0
      ? "No links are configured"
      : down.length === 0
        ? ["The link is up", "Both links are up"][links.length - 1] ?? `All ${links.length} links are up`
        : down.length === 1 ? `The link to ${down[0].peer} is ${down[0].state === "unknown" ? "unknown" : "down"}` : `${down.length} of ${links.length} links are ${some}`;
    setText(byId("headline"), text);
    byId("summary").dataset.tone = down.length ? "bad" : "good";
    document.title = `${down.length ? "▼ " : ""}${this.status.node}${this.status.instance ? ` at ${this.status.instance}` : ""} · linkd`;
  }

  /** What is known of our own connection to the node. @param {import("./linkd.js").Status} status */
  connection({ state, retrySeconds, attempts }) {
    if (state === "waiting" && this.lostAt === undefined) {
      this.lostAt = Date.now();
      this.get("v1/status"); // a session that ended asks for a token
    }
    if (state === "up" && this.lostAt !== undefined) this.cards.forEach(({ plots }) => plots.visible && plots.fill());
    if (state === "up" || state === "stopped") this.lostAt = undefined;
    const lost = this.lostAt !== undefined;
    byId("connection").dataset.state = lost ? "waiting" : state;
    setText(byId("connection"), lost ? "page not connected" : state === "up" ? "page live" : this.signedOut ? "signed out" : "page connecting");
    document.body.dataset.stale = String(lost);
    byId("lost").hidden = !lost;
    if (this.lostAt !== undefined) {
      const since = lasting((Date.now() - this.lostAt) / 1000);
      const next = retrySeconds === null ? "trying" : `trying again within ${Math.ceil(retrySeconds)} s`;
      setText(byId("lost-text"), `No connection to the node for ${since}. What you see is from before. Attempt ${attempts}, ${next}.`);
    }
    this.messages.judge();
  }
}

/** @param {() => void} changed */
function theme(changed) {
  const root = document.documentElement;
  const button = byId("theme");
  const shown = () => setText(button, `Theme: ${root.dataset.theme ?? "auto"}`);
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "system") localStorage.removeItem("linkd-theme");
      else localStorage.setItem("linkd-theme", next);
    } catch {
      // No storage: it holds until the page is left.
    }
    shown();
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  shown();
}

new Dashboard().run();
