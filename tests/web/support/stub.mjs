// A stand-in for a node: speaks the local API of docs/api.md as far as linkd.js and the dashboard use it, from memory,
// with its faults at the test's hand.
import { createServer } from "node:http";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { WebSocketServer } from "ws";

const FILES = new URL("../../../linkd/api/dashboard/", import.meta.url);
const TYPES = { js: "text/javascript; charset=utf-8", css: "text/css; charset=utf-8", html: "text/html; charset=utf-8" };
const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';" +
  " base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

export class StubNode {
  constructor({ key = null } = {}) {
    this.key = key;
    this.port = 0;
    this.records = [];
    this.next = 1;
    this.log = "l-1";
    this.epochs = [["e-1", 1]];
    this.mostBytes = 1_048_576;
    this.away = new Set(); // patterns that are refused for now
    this.cursors = new Map(); // of named consumers
    this.ids = new Map();
    this.tokens = new Set();
    this.sessions = new Set();
    this.outages = [];
    /** Seconds of the last day in which nothing was measured. */
    this.unknown = 0;
    /** Minutes of the last hour that the daemon has kept for the plots. */
    this.hour = 0;
    /** More fields of the status. */
    this.more = {};
    this.events = [];
    this.started = Date.now();
    this.links = [link("hub", { role: "dialer" }), link("warehouse", { role: "listener" })];
    this.pages = new Map(); // served as HTML, by path
    this.below = ""; // a proxy in front serves it below this path
    this.mute = false; // hear everything, answer nothing
    this.deaf = false; // answer no frame, but say that it is open
    this.dropAcks = 0; // store so many publishes, then cut the connection instead of answering
    this.unavailable = 0; // refuse so many publishes as a node does that is stopping
    this.seen = { refused: 0, tokens: 0, upgrades: [], frames: [] };
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async start() {
    this.server = createServer((request, response) => {
      if (!this.strip(request)) return response.writeHead(404).end();
      this.answer(request, response).catch((error) => response.writeHead(500).end(String(error)));
    });
    this.sockets = new WebSocketServer({ noServer: true, handleProtocols: (offered) => (offered.has("linkd.text.1") ? "linkd.text.1" : false) });
    this.server.on("upgrade", (request, socket, head) => (this.strip(request) ? this.upgrade(request, socket, head) : socket.destroy()));
    await new Promise((resolve) => this.server.listen(this.port, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    return this;
  }

  /** Take the path of the proxy off a request; return whether it had it. */
  strip(request) {
    if (!request.url.startsWith(`${this.below}/`)) return false;
    request.url = request.url.slice(this.below.length);
    return true;
  }

  async stop() {
    this.cutConnections();
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  cutConnections() {
    for (const each of this.sockets.clients) each.terminate();
  }

  admits(request) {
    if (this.key === null) return true;
    const bearer = (request.headers.authorization ?? "").replace(/^Bearer /, "");
    if (bearer === this.key) return true;
    const cookie = /linkd_session=([^;]+)/.exec(request.headers.cookie ?? "")?.[1];
    return this.sessions.has(cookie);
  }

  async answer(request, response) {
    const url = new URL(request.url, this.url);
    const json = (status, body, headers = {}) =>
      response.writeHead(status, { "Content-Type": "application/json", ...headers }).end(JSON.stringify(body));
    const name = url.pathname === "/" ? "index.html" : /^\/(?:dashboard\/([\w.-]+)|(linkd\.js))$/.exec(url.pathname)?.slice(1).join("");
    if (name) {
      const body = await readFile(new URL(name, FILES)).catch(() => null);
      if (body === null) return json(404, { error: "not-found", message: name });
      const headers = { "Content-Type": TYPES[name.split(".").pop()] ?? "text/plain", "X-Content-Type-Options": "nosniff" };
      if (name === "index.html") headers["Content-Security-Policy"] = CSP;
      return response.writeHead(200, headers).end(body);
    }
    if (this.pages.has(url.pathname)) return response.writeHead(200, { "Content-Type": TYPES.html }).end(this.pages.get(url.pathname));
    if (url.pathname === "/favicon.ico") return response.writeHead(204).end();
    if (url.pathname === "/v1/session" && request.method === "POST") {
      const token = (request.headers.authorization ?? "").replace(/^Bearer /, "");
      if (!this.tokens.delete(token)) return json(401, { error: "unauthorized", message: "no such token" });
      const session = randomUUID();
      this.sessions.add(session);
      return response.writeHead(204, { "Set-Cookie": `linkd_session=${session}; HttpOnly; SameSite=Strict; Path=/` }).end();
    }
    if (url.pathname === "/healthz") return response.writeHead(200, { "Content-Type": "text/plain" }).end("ok\n");
    if (!this.admits(request)) return (this.seen.refused += 1), json(401, { error: "unauthorized", message: "a key, a token or a session is needed" });
    if (url.pathname === "/v1/token" && request.method === "POST") {
      this.seen.tokens += 1;
      return json(201, { token: this.token(), expires_seconds: 30 });
    }
    if (url.pathname === "/v1/status") return json(200, this.status());
    if (url.pathname === "/v1/outages") return json(200, { outages: [...this.outages, ...this.open()], availability: this.links.map((each) => this.availability(each.peer)) });
    if (url.pathname === "/v1/events") {
      const after = Number(url.searchParams.get("after") ?? 0);
      return json(200, { events: this.events.filter(({ number }) => number > after), next: this.events.length + 1 });
    }
    const kept = /^\/v1\/peers\/([^/]+)\/history$/.exec(url.pathname);
    if (kept && request.method === "GET") return json(200, this.kept(kept[1]));
    if (url.pathname.startsWith("/v1/channels/")) return this.follow(request, response, url.pathname.slice(13));
    return json(404, { error: "not-found", message: url.pathname });
  }

  follow(request, response, channel) {
    const after = Number(request.headers["last-event-id"] ?? 0);
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    for (const record of this.records) {
      if (record.channel === channel && record.offset > after) response.write(`id: ${record.offset}\ndata: ${JSON.stringify(record)}\n\n`);
    }
  }

  token() {
    const token = randomUUID();
    this.tokens.add(token);
    return token;
  }

  upgrade(request, socket, head) {
    const url = new URL(request.url, this.url);
    const offered = /linkd\.bearer\.([\w-]+)/.exec(request.headers["sec-websocket-protocol"] ?? "")?.[1];
    const bearer = offered ? Buffer.from(offered, "base64url").toString() : url.searchParams.get("ws_token");
    const admitted = this.tokens.delete(bearer) || bearer === this.key || this.admits(request);
    this.seen.upgrades.push(bearer);
    if (!admitted) this.seen.refused += 1;
    if (!admitted && request.headers.origin) return this.sockets.handleUpgrade(request, socket, head, (ws) => ws.close(4401, "a key is needed"));
    if (!admitted) return socket.end("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    this.sockets.handleUpgrade(request, socket, head, (ws) => this.serve(ws, url));
  }

  serve(ws, url) {
    ws.patterns = new Map(); // of each subscription by its name, or by its pattern
    ws.consumers = new Map(); // of each subscription by its name
    ws.envelope = url.searchParams.get("envelope") === "1";
    ws.wantsStatus = url.searchParams.get("status") === "1";
    ws.channel = url.searchParams.get("channel");
    if (ws.channel) ws.patterns.set(ws.channel, ws.channel);
    const from = Number(url.searchParams.get("from"));
    if (from > 0) for (const each of this.records) if (each.offset >= from && matches(ws.channel, each.channel)) this.send(ws, each);
    ws.on("message", (bytes) => this.frame(ws, String(bytes)));
    const opened = { node: "edge-1", version: "1.0.0", log: this.log, epoch: this.epochs.at(-1)[0], next: this.next, max_body_bytes: this.mostBytes };
    if (url.searchParams.get("linkd") === "1") this.send(ws, { type: "opened", data: opened });
    if (ws.wantsStatus) for (const each of this.links) this.send(ws, { type: "status", data: this.linkStatus(each) });
  }

  send(ws, frame) {
    if (!this.mute) ws.send(JSON.stringify(frame));
  }

  /** Send a record to one of a client's subscriptions, if it is for it. */
  deliver(ws, record, name) {
    const pattern = ws.patterns.get(name);
    if (matches(pattern, record.channel)) this.send(ws, name === pattern ? record : { ...record, subscription: name });
  }

  /** Send any delivery to each subscription of every client that selects its channel. */
  deliverAll(record) {
    for (const each of this.sockets.clients) for (const name of each.patterns.keys()) this.deliver(each, record, name);
  }

  /** Where a subscription resumes: at the end of the newest epoch that it knows. */
  resumed(seen) {
    for (const [epoch] of [...seen].reverse()) {
      const at = this.epochs.findIndex(([name]) => name === epoch);
      if (at >= 0) return Math.min(seen.at(-1)[1], this.epochs[at + 1]?.[1] ?? this.next);
    }
    return 1;
  }

  frame(ws, text) {
    const frame = JSON.parse(text);
    if (this.deaf) return;
    this.seen.frames.push(frame);
    const { type, data, id } = frame;
    if (type === "ping") return this.send(ws, { type: "pong" });
    if (type === "pong") return;
    if (type === "unsubscribe") return void ws.patterns.delete(data.subscription ?? data.channel);
    if (type === "ack") return void this.cursors.set(ws.consumers.get(data.subscription), data.next);
    if (type === "subscribe") {
      if (data.channel.startsWith("secret")) {
        return this.send(ws, { type: "error", data: { id, error: "channel-refused", message: `${data.channel} is refused` } });
      }
      if (this.away.has(data.channel)) return this.send(ws, { type: "error", data: { id, error: "channel-refused", message: "not now" } });
      const wanted = { earliest: 1, latest: this.next }[data.from] ?? data.from ?? this.next;
      const cursor = this.cursors.get(data.consumer);
      const from = data.seen ? this.resumed(data.seen) : (cursor ?? Math.min(wanted, this.next));
      const name = data.subscription ?? data.channel;
      if (data.consumer) {
        ws.consumers.set(name, data.consumer);
        this.cursors.set(data.consumer, from);
      }
      ws.patterns.set(name, data.channel);
      if (id) this.send(ws, { type: "ack", data: { id, offset: from, epoch: this.epochs.at(-1)[0] } });
      for (const record of this.records) if (record.offset >= from) this.deliver(ws, record, name);
      return;
    }
    if (this.unavailable > 0) {
      this.unavailable -= 1;
      return this.send(ws, { type: "error", data: { id, error: "unavailable", message: "stopping" } });
    }
    this.publish(frame.channel ?? ws.channel, type, data, id, ws);
  }

  publish(channel, type, data, id = null, ws = null) {
    let offset = id && this.ids.get(id);
    if (!offset) {
      offset = this.next;
      this.next += 1;
      if (id) this.ids.set(id, offset);
      const record = { type, data, channel, offset, origin: "edge-1", time: new Date().toISOString() };
      this.records.push(record);
      for (const each of this.sockets.clients) for (const name of each.patterns.keys()) this.deliver(each, record, name);
    }
    if (!ws || !id) return offset;
    if (this.dropAcks > 0) return (this.dropAcks -= 1), ws.terminate();
    this.send(ws, { type: "ack", data: { id, offset } });
    return offset;
  }

  // What the tests do to the links.

  change(peer, state, reason = null, detail = null) {
    const it = this.links.find((each) => each.peer === peer);
    const old = it.state;
    Object.assign(it, { state, reason, detail, changed: Date.now() });
    if (old === "up") Object.assign(it, { down: Date.now(), rtt_seconds: null, silence_seconds: null, backlog_records: 40, backlog_bytes: 9000 });
    if (state === "up") {
      if (it.down) this.outages.push(outage(peer, it.down - 6400, reason ?? it.why ?? "ping-timeout", 6.4, (Date.now() - it.down) / 1000 + 6.4));
      Object.assign(it, { rtt_seconds: 0.012, silence_seconds: 0.4, backlog_records: 0, backlog_bytes: 0, down: null });
    } else it.why = reason;
    const event = { number: this.events.length + 1, time: new Date().toISOString(), event: `link.${state}`, peer, generation: "b-1", old, new: state, reason, detail };
    this.events.push(event);
    for (const each of this.sockets.clients) {
      if (each.wantsStatus) this.send(each, { type: "status", data: this.linkStatus(it) });
    }
  }

  cut(peer) {
    this.change(peer, "waiting", "ping-timeout", "nothing heard for 7.0 s");
  }

  restore(peer) {
    this.change(peer, "up");
  }

  history(outages = 500, hours = 24) {
    let seed = 7;
    const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
    const reasons = ["ping-timeout", "silence", "closed", "unreachable", "refused"];
    const now = Date.now();
    this.outages = Array.from({ length: outages }, () => {
      const down = 3 + random() ** 9 * 500;
      return outage(this.links[random() < 0.7 ? 0 : 1].peer, now - random() * (hours * 3.6e6 - 7e5) - 7e5, reasons[Math.floor(random() * 5)], 2 + random() * 5, down);
    }).sort((a, b) => a.began.localeCompare(b.began));
    for (const each of this.outages.slice(-60)) {
      const began = Date.parse(each.began);
      const event = (state, old, at, reason) => ({ number: this.events.length + 1, time: new Date(at).toISOString(), event: `link.${state}`, peer: each.peer, generation: "b-1", old, new: state, reason, detail: reason && `nothing heard for ${each.noticed_after_seconds} s` });
      this.events.push(event("waiting", "up", began + each.noticed_after_seconds * 1000, each.reason));
      this.events.push(event("up", "resuming", began + each.down_seconds * 1000, null));
    }
    this.events.sort((a, b) => a.time.localeCompare(b.time)).forEach((each, at) => (each.number = at + 1));
  }

  /** The outages that go on, as the daemon lists them. */
  open() {
    const down = this.links.filter(({ down }) => down);
    return down.map((it) => ({ ...outage(it.peer, it.down - 6400, it.why ?? "ping-timeout", 6.4, (Date.now() - it.down) / 1000 + 6.4), ongoing: true, drained_seconds: null }));
  }

  /** All of the last day was measured, but for `this.unknown` seconds at its beginning. */
  availability(peer) {
    const now = Date.now();
    const share = (seconds) => {
      const start = now - Math.min(seconds, 86_400 - this.unknown) * 1000;
      const mine = [...this.outages, ...this.open()].filter((each) => each.peer === peer);
      const down = mine.map((each) => [Date.parse(each.began), Date.parse(each.began) + each.down_seconds * 1000]);
      const lost = down.reduce((sum, [from, to]) => sum + Math.max(0, Math.min(to, now) - Math.max(from, start)), 0);
      return 1 - lost / (now - start);
    };
    const since = new Date(now - (86_400 - this.unknown) * 1000).toISOString();
    return { peer, measured_since: since, hour: share(3600), day: share(86_400), week: share(86_400), month: share(86_400), measured: [[since, new Date(now).toISOString()]] };
  }

  /** The last hour of a link; `this.hour` minutes of it are known. */
  kept(peer) {
    const steps = this.hour ? 720 : 0;
    const known = (read) => Array.from({ length: steps }, (_, at) => (at < steps - this.hour * 12 ? null : read(at)));
    return {
      peer, step_seconds: 5, end: new Date().toISOString(), rtt_seconds: known((at) => 0.012 + 0.002 * Math.sin(at / 9)), silence_seconds: known((at) => 4.9 + 0.1 * Math.sin(at)),
      backlog_records: known(() => 0), sent_records: known((at) => 150 + (at % 40)), received_records: known((at) => 40 + (at % 20)),
    };
  }

  linkStatus(it) {
    const { changed, down, why, ...fields } = it;
    const jitter = it.state === "up" ? { rtt_seconds: 0.011 + Math.random() * 0.004, silence_seconds: Math.random() * 2 } : {};
    if (it.state === "up") it.sent_records += 20 + Math.floor(Math.random() * 20);
    if (it.state === "up") it.received_records += 5 + Math.floor(Math.random() * 9);
    const seconds = (Date.now() - (down ? down - 6400 : changed)) / 1000;
    const outage = down ? { down_since: new Date(down - 6400).toISOString(), down_seconds: seconds, last_heard_seconds: seconds } : {};
    return { ...fields, ...jitter, ...outage, since_seconds: seconds };
  }

  status() {
    return {
      node: "edge-1",
      version: "1.0.0",
      uptime_seconds: (Date.now() - this.started) / 1000 + 86400 * 12,
      log: { id: "l-1", first: 1, next: this.next, bytes: 4.1e9, max_bytes: 10_737_418_240 },
      consumers: [{ owner: "socket", name: "billing", next: this.next, lag_records: 0 }, { owner: "shop", name: "reports", next: 1, lag_records: 1840 }],
      warnings: [], refused: [], ...this.more,
      links: this.links.map((each) => this.linkStatus(each)),
    };
  }
}

function link(peer, fields) {
  return {
    peer, state: "up", generation: "b-1", address: "203.0.113.9:9443", rtt_seconds: 0.012, silence_seconds: 0.4,
    backlog_records: 0, backlog_bytes: 0, backlog_age_seconds: null, sent_records: 183_220, received_records: 20_411, attempts: 0,
    next_attempt_seconds: null, reason: null, detail: null, peer_version: "linkd 1.0.0", certificate_expires_seconds: 5_200_000,
    required: true, down_since: null, down_seconds: null, last_heard_seconds: 0.4, outage_reason: null, attempt_seconds: null, attempt_reason: null, attempt_detail: null, changed: Date.now() - 3_700_000, down: null, why: null, ...fields,
  };
}

function outage(peer, began, reason, noticed, down) {
  return {
    peer, began: new Date(began).toISOString(), reason, noticed_after_seconds: Number(noticed.toFixed(3)),
    down_seconds: Number(Math.max(down, noticed).toFixed(3)), attempts: 1 + Math.floor(down / 5), replayed_records: Math.floor(down * 20), drained_seconds: 0.21,
  };
}

function matches(pattern, channel) {
  const words = pattern.split(".");
  const parts = channel.split(".");
  return words.every((word, at) => word === ">" || (parts[at] !== undefined && (word === "*" || word === parts[at]))) &&
    (words.at(-1) === ">" || words.length === parts.length);
}
