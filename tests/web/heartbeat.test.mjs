// When linkd.js takes a connection for dead, and when it tries again: timers that are late, and what a browser tells.
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import WebSocket from "ws";
import { Linkd } from "../../linkd/api/dashboard/linkd.js";
import { StubNode } from "./support/stub.mjs";
import { until } from "./support/until.mjs";

const QUICK = { minDelay: 0.01, maxDelay: 0.05, pingInterval: 0.1, pingTimeout: 0.15, stableAfter: 0.05, connectTimeout: 10 };
const timer = globalThis.setTimeout;
const interval = globalThis.setInterval;
let stub;
let opened;
let undo;

beforeEach(async () => {
  stub = await new StubNode().start();
  [opened, undo] = [[], []];
});
afterEach(async () => {
  globalThis.setTimeout = timer;
  globalThis.setInterval = interval;
  for (const each of opened) each.close();
  for (const [name, descriptor] of undo) {
    if (descriptor) Object.defineProperty(globalThis, name, descriptor);
    else delete globalThis[name];
  }
  await stub.stop();
});

/** Give this program a part of a browser. */
function browser(parts) {
  for (const [name, value] of Object.entries(parts)) {
    undo.push([name, Object.getOwnPropertyDescriptor(globalThis, name)]);
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  }
}

/** A window whose events a test fires. */
function events() {
  const target = new EventTarget();
  browser({ addEventListener: target.addEventListener.bind(target), removeEventListener: target.removeEventListener.bind(target) });
  return (name) => target.dispatchEvent(new Event(name));
}

function client(options = {}) {
  const node = new Linkd({ url: stub.url, WebSocket, ...QUICK, ...options });
  opened.push(node);
  return node.open();
}
const up = (node) => until(() => node.isUp);
const pause = (seconds) => new Promise((resolve) => timer(resolve, seconds * 1000));

/** Run timers once in 1.3 s, as Chromium runs those of a page that is long hidden once a minute. */
function throttle() {
  globalThis.setTimeout = (call, milliseconds) => timer(call, 1300 - (performance.now() % 1300) + (milliseconds > 1300 ? milliseconds : 0));
  globalThis.setInterval = (call) => interval(call, 1300);
}

test("a hidden page, whose timers are late, keeps a live and quiet connection", async () => {
  throttle();
  const node = client();
  await up(node);
  await pause(6);
  assert.equal(stub.seen.upgrades.length, 1);
  assert.ok(node.isUp);
});

test("a path that dies is noticed with late timers too, at the second wake without an answer", async () => {
  const closed = [];
  const node = client();
  node.addEventListener("close", ({ detail }) => closed.push(detail.reason));
  await up(node);
  throttle();
  stub.mute = true;
  await until(() => closed.length === 1, 8);
  assert.match(closed[0], /nothing heard/);
});

test("a program that was asleep asks first", async () => {
  const node = client();
  await up(node);
  await pause(0.12);
  const end = performance.now() + 1500;
  while (performance.now() < end);
  await pause(0.5);
  assert.equal(stub.seen.upgrades.length, 1);
});

test("a large message that comes in parts is life, however long it takes, and others pass in between", async () => {
  const got = [];
  const node = client();
  const [slow, small] = [node.subscribe("slow", ({ data }) => got.push(data)), node.subscribe("small", ({ data }) => got.push(data))];
  await up(node);
  await until(() => small.next !== undefined && slow.next !== undefined);
  const [socket] = stub.sockets.clients;
  const [name] = socket.patterns.keys();
  const text = "ü".repeat(1000);
  const bytes = Buffer.from(JSON.stringify({ type: null, data: text, channel: "slow", offset: 1, origin: "hub", subscription: name }));
  stub.send(socket, { type: "parts", data: { number: 7, bytes: bytes.length } });
  stub.mute = true; // no pong
  for (let place = 0; place < bytes.length; place += 300) {
    socket.send(Buffer.concat([Buffer.from([0, 0, 0, 7]), bytes.subarray(place, place + 300)]));
    if (place === 600) socket.send(JSON.stringify({ type: null, data: 2, channel: "small", offset: 2, origin: "hub", subscription: [...socket.patterns.keys()][1] }));
    await pause(0.1);
  }
  stub.mute = false;
  await until(() => got.length === 2);
  assert.deepEqual(got, [2, text]);
  assert.equal(stub.seen.upgrades.length, 1);
});

test("what was too slow twice in a row may take twice as long", async () => {
  const closed = [];
  const node = client();
  node.addEventListener("close", ({ detail }) => closed.push(Number(/[\d.]+/.exec(detail.reason)[0])));
  stub.deaf = true; // it opens, and then says nothing
  await until(() => closed.length === 4, 10);
  assert.ok(closed[1] < 0.5 && closed[2] >= 0.5 && closed[3] >= 1, `${closed}`);
});

test("online: an attempt that hangs is made again at once", async () => {
  const fire = events();
  let made = 0;
  function Hanging(url, protocols) {
    made += 1;
    return made === 1 ? { close() {} } : new WebSocket(url, protocols);
  }
  const node = client({ WebSocket: Hanging });
  await until(() => made === 1);
  fire("online");
  await until(() => node.isUp);
});

test("offline or online: whether the connection lives is found out within pingTimeout", async () => {
  for (const name of ["offline", "online"]) {
    const fire = events();
    const closed = [];
    const node = client({ pingInterval: 60, pingTimeout: 0.2 });
    node.addEventListener("close", ({ detail }) => closed.push(detail.reason));
    await up(node);
    fire(name);
    await pause(0.5);
    assert.deepEqual(closed, [], "it was alive");
    stub.mute = true;
    fire(name);
    await until(() => closed.length === 1);
    stub.mute = false;
    node.close();
  }
});

test("a silence that was looked for after online or offline makes nobody more patient", async () => {
  const fire = events();
  const closed = [];
  const node = client({ pingInterval: 60, pingTimeout: 0.2 });
  node.addEventListener("close", () => {
    closed.push(performance.now());
    stub.mute = false; // here, not in the loop below: the next attempt begins within 10 ms
  });
  for (let round = 1; round <= 4; round += 1) {
    await up(node);
    stub.mute = true;
    const fired = performance.now();
    fire("online");
    await until(() => closed.length === round);
    // A client that has lost its patience would take 800 ms in the last round.
    assert.ok(closed.at(-1) - fired < 700, `round ${round}: ${closed.at(-1) - fired} ms`);
  }
});

test("while the browser is offline an attempt is made once a minute, but to this host as ever", async () => {
  browser({ navigator: { onLine: false } });
  function Refused() {
    return { set onclose(call) { timer(() => call({ code: 1006, reason: "" }), 1); }, close() {} };
  }
  const far = client({ url: "http://node.example", WebSocket: Refused, fetch: () => Promise.reject(new Error("none")) });
  await until(() => far.status.value.state === "waiting");
  assert.ok(far.status.value.retrySeconds >= 48);
  const near = client({ WebSocket: Refused, fetch: () => Promise.reject(new Error("none")) });
  await until(() => near.status.value.state === "waiting");
  assert.ok(near.status.value.retrySeconds <= 0.05);
});

test("a hidden page tries again without a timer, and a page that comes back looks at once", async () => {
  const document = Object.assign(new EventTarget(), { visibilityState: "hidden" });
  browser({ document });
  const node = client({ minDelay: 50, maxDelay: 50, random: () => 1, pingInterval: 60, pingTimeout: 0.2 });
  await up(node);
  stub.cutConnections();
  await until(() => stub.seen.upgrades.length === 2 && node.isUp);
  await stub.stop();
  await until(() => node.status.value.state === "waiting");
  await stub.start();
  document.visibilityState = "visible";
  document.dispatchEvent(new Event("visibilitychange"));
  await until(() => node.isUp);
});

test("the reason is the reason: a page's policy, a node that is not there, one that refuses the page", async () => {
  const document = new EventTarget();
  browser({ document });
  const node = client({ WebSocket: function Mute() { return { close() {} }; } });
  const violation = Object.assign(new Event("securitypolicyviolation"), { blockedURI: `${stub.url.replace("http", "ws")}/ws`, effectiveDirective: "connect-src" });
  document.dispatchEvent(violation);
  assert.equal(node.status.value.state, "rejected");
  assert.match(node.status.value.reason, /Content-Security-Policy/);
  function Closing() {
    return { set onclose(call) { timer(() => call({ code: 1006, reason: "" }), 1); }, close() {} };
  }
  for (const [fetch, reason] of [[async () => ({}), /api\.origins/], [() => Promise.reject(new Error("no")), /no connection/]]) {
    const each = client({ WebSocket: Closing, fetch, minDelay: 0.05 });
    await until(() => reason.test(each.status.value.reason ?? ""));
    const { attempts } = each.status.value;
    await until(() => each.status.value.attempts > attempts + 1 && each.status.value.state === "waiting");
    assert.match(each.status.value.reason, reason);
  }
});

test("a page asks by HTTP whether a node that is away is back: browsers delay WebSockets that failed often", async () => {
  let dialed = 0;
  let asked = 0;
  let there = false;
  function Page(url, protocols) {
    dialed += 1;
    return there ? new WebSocket(url, protocols) : { set onclose(call) { timer(() => call({ code: 1006, reason: "" }), 1); }, close() {} };
  }
  const fetch = async (url) => {
    assert.match(String(url), /^http:.*healthz$/);
    asked += 1;
    if (!there) throw new TypeError("Failed to fetch");
  };
  const node = client({ url: stub.url.replace("http", "ws"), WebSocket: Page, fetch, maxDelay: 5 });
  await until(() => asked > 20);
  assert.equal(dialed, 1);
  assert.equal(node.status.value.reason, "no connection to the node can be made");
  there = true;
  await until(() => node.isUp, 2);
  assert.equal(dialed, 2);
});

test("a page whose policy forbids to ask tries its WebSocket, as does one whose question stays without an answer", async () => {
  const document = new EventTarget();
  browser({ document });
  let dialed = 0;
  function Page() {
    dialed += 1;
    return { set onclose(call) { timer(() => call({ code: 1006, reason: "" }), 1); }, close() {} };
  }
  const fetch = async () => {
    const violation = { blockedURI: `${stub.url}/healthz`, effectiveDirective: "connect-src" };
    document.dispatchEvent(Object.assign(new Event("securitypolicyviolation"), violation));
    throw new TypeError("Failed to fetch");
  };
  const forbidden = client({ WebSocket: Page, fetch });
  await until(() => dialed > 5);
  forbidden.close();
  dialed = 0;
  client({ WebSocket: Page, fetch: () => new Promise(() => {}) });
  await until(() => dialed === 3, 4);
});

test("links are empty while the connection is down", async () => {
  const node = client({ status: true });
  await up(node);
  stub.cut("hub");
  await until(() => node.links.value.has("hub"));
  await stub.stop();
  await until(() => !node.isUp);
  assert.equal(node.links.value.size, 0);
  await stub.start();
});

test("where no address is given, a frame's is that of the page around it; none at all is said at once", () => {
  browser({ location: { href: "about:srcdoc", origin: "http://shop.example" }, document: { baseURI: "about:srcdoc" } });
  assert.equal(new Linkd({ WebSocket }).url.host, "shop.example");
  browser({ location: { href: "about:srcdoc", origin: "null" }, document: {} });
  assert.throws(() => new Linkd({ WebSocket }), TypeError);
  assert.throws(() => new Linkd({ WebSocket, url: "not one" }), TypeError);
});
