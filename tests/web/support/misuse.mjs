// linkd.js under wrong arguments and under functions that fail, on a real node: each call raises or settles, and a
// publish behind it settles. Says {"cases", "wrong", "drops"} and then {"hooks", "wrong"}.
//   node misuse.mjs URL
import WebSocket from "ws";
import { Linkd, connect } from "../../../linkd/api/dashboard/linkd.js";
import { until } from "./until.mjs";

const [url] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const within = (promise, seconds) =>
  Promise.race([promise.then(() => "ok", () => "refused"), new Promise((resolve) => setTimeout(resolve, seconds * 1000, "never"))]);
console.error = () => {}; // what the library reports where nothing else does

const cyclic = {};
cyclic.self = cyclic;
const deep = JSON.parse(`${"[".repeat(100)}${"]".repeat(100)}`);
const raising = { get trap() { throw new Error("a getter"); } };
const VALUES = [
  undefined, null, NaN, Infinity, -1, -0, 0.5, 7, 2 ** 53, 2 ** 70, -(2 ** 70), "", " ", "a", "a..b", ">", "*", "$x", "a\u0000b", "ping",
  "I like 😀".slice(0, 8), "ü".repeat(3000), "x".repeat(400_000), "x".repeat(20_000_000), true, 10n, Symbol("s"), () => 1, async () => 1, [], {}, [NaN],
  { a: undefined }, { "a b": "1" }, { ["\ud800"]: "1" }, { a: "\ud800" }, cyclic, deep, raising, new Map([[1, 2]]), new Set([1]),
  new Uint8Array(3), new ArrayBuffer(3), new Date(NaN), new Error("e"), /x/, new (class Own { x = 1; })(), Object.create(null), new Number(1), WebSocket,
];
const name = (value) => {
  try {
    return `${typeof value} ${String(value).slice(0, 20)}`;
  } catch {
    return typeof value;
  }
};

const node = connect({ url, WebSocket, maxDelay: 0.2 });
let drops = 0;
node.addEventListener("close", () => (drops += 1));
await until(() => node.isUp);
const CALLS = {
  "publish channel": (value) => node.publish(value, 1),
  "publish data": (value) => node.publish("a", value),
  "publish options": (value) => node.publish("a", 1, value),
  ...Object.fromEntries(["type", "id", "headers", "whenDown", "timeout"].map((option) => [
    `publish ${option}`, (value) => node.publish("a", 1, { [option]: value }),
  ])),
  "subscribe pattern": (value) => node.subscribe(value),
  "subscribe call": (value) => node.subscribe("b", value),
  "subscribe consumer": (value) => node.subscribe("b", () => {}, { consumer: value }),
  "subscribe consumer call": (value) => node.subscribe("b", value, { consumer: "c" }),
  "subscribe from": (value) => node.subscribe("b", () => {}, { from: value }),
  "subscribe options": (value) => node.subscribe("b", () => {}, value),
  "on type": (value) => node.on(value, () => {}),
  "on call": (value) => node.on("t", value),
  "off": (value) => node.off(value, value),
  "send": (value) => node.send(value),
  "send subscribe": (value) => node.send({ type: "subscribe", id: "s", data: { channel: "c", subscription: value, seen: value, from: value } }),
  "send ack": (value) => node.send({ type: "ack", id: "k", data: { subscription: value, next: value } }),
  "send publish": (value) => node.send({ type: "t", data: value, channel: value, id: value, headers: value }),
  "addEventListener": (value) => node.addEventListener("open", value),
  "removeEventListener": (value) => node.removeEventListener("open", value),
  "new": (value) => {
    for (const option of ["url", "key", "token", "WebSocket", "fetch", "encode", "decode", "random", "whenDown", "pingInterval", "pingTimeout", "connectTimeout", "minDelay", "maxDelay", "stableAfter", "maxAttempts", "maxPending", "status", "presence"]) {
      try {
        new Linkd({ url, WebSocket, [option]: value });
      } catch (error) {
        if (!(error instanceof TypeError) && error.code !== "no-websocket") throw new Error(`${option}: ${error}`);
      }
    }
  },
};
let cases = 0;
const wrong = [];
for (const [what, call] of Object.entries(CALLS)) {
  for (const value of VALUES) {
    cases += 1;
    let made;
    try {
      made = call(value);
      made?.catch?.(() => {});
    } catch (error) {
      if (what === "new") wrong.push(`${what} ${name(value)}: ${error}`);
    }
    if (typeof made?.then === "function" && (await within(made, 5)) === "never") wrong.push(`${what} ${name(value)}: never settles`);
    if ((await within(node.publish("probe", cases), 5)) !== "ok") wrong.push(`${what} ${name(value)}: a publish behind it does not settle`);
    if (made?.unsubscribe) made.unsubscribe();
  }
}
say({ cases, wrong, drops });
node.close();

const WAYS = {
  raises: () => {
    throw new Error("as asked");
  },
  rejects: () => Promise.reject(new Error("as asked")),
  "never ends": () => new Promise(() => {}),
};
const once = (way, then) => {
  let done = false;
  return (...given) => (done ? then(...given) : ((done = true), way()));
};
// How a function of the application comes to be called, always failing, and once where nothing can go on without it.
const HOOKS = {
  onOpen: (way) => [class extends Linkd { onOpen() { return way(); } }, {}],
  onMessage: (way) => [class extends Linkd { onMessage() { return way(); } }, {}],
  onClose: (way) => [class extends Linkd { onClose() { return way(); } }, {}],
  onError: (way) => [class extends Linkd { onError() { return way(); } }, {}],
  "the call of a subscription": (way) => [Linkd, {}, (node) => node.subscribe("h", way)],
  "the call of a consumer": (way) => [Linkd, {}, (node) => node.subscribe("h", way, { consumer: "w" })],
  "a call by type": (way) => [Linkd, {}, (node) => node.on("mine", way)],
  ...Object.fromEntries(["connecting", "rejected", "up", "waiting"].map((state) => [
    `an observer of the status at ${state}`, (way) => [Linkd, {}, (node) => node.status.subscribe((it) => (it.state === state ? way() : null))],
  ])),
  "an observer of the links": (way) => [Linkd, { status: true }, (node) => node.links.subscribe(once(() => {}, way))],
  ...Object.fromEntries(["status", "open", "close", "error", "link"].map((event) => [
    `a listener of ${event}`, (way) => [Linkd, { status: true }, (node) => node.addEventListener(event, way)],
  ])),
  token: (way) => [Linkd, { token: once(way, () => null) }],
  random: (way) => [Linkd, { random: way }],
  encode: (way) => [Linkd, { encode: once(way, JSON.stringify) }],
  decode: (way) => [Linkd, { decode: once(way, JSON.parse) }],
};
/** A WebSocket whose first connection the node refuses: the client is `rejected` once. */
function refusedOnce() {
  let first = true;
  return function Socket(url, protocols) {
    if (!first) return new WebSocket(url, protocols);
    first = false;
    return { set onclose(call) { setTimeout(() => call({ code: 4401, reason: "the key is not known" }), 1); }, close() {} };
  };
}
const failed = [];
let hooks = 0;
for (const [hook, make] of Object.entries(HOOKS)) {
  for (const [way, fail] of Object.entries(WAYS)) {
    hooks += 1;
    const [Class, options, prepare] = make(fail);
    const mine = new Class({ url, WebSocket: refusedOnce(), minDelay: 0.01, maxDelay: 0.05, connectTimeout: 0.5, ...options });
    const got = [];
    const reported = [];
    mine.addEventListener("error", ({ detail }) => reported.push(detail.code));
    const states = new Set();
    mine.status.subscribe(({ state }) => states.add(state));
    try {
      prepare?.(mine);
    } catch (error) {
      failed.push(`${hook} ${way}: ${error}`);
    }
    mine.open();
    mine.subscribe("h", ({ data }) => got.push(data));
    await within(mine.publish("h", 0, { type: "mine" }), 5);
    for (const round of [1, 2]) {
      const settled = await within(mine.publish("h", round, { type: "mine" }), 5);
      if (settled !== "ok") failed.push(`${hook} ${way}: publish ${round} ${settled}`);
      if (round === 1) mine._socket?.terminate();
    }
    await until(() => got.includes(2), 5).catch(() => failed.push(`${hook} ${way}: not received, got ${got}`));
    if (states.size !== 5) failed.push(`${hook} ${way}: only ${[...states]}`);
    // `onError` itself and a listener of "error" are called only where something failed.
    const tells = way !== "never ends" && !["onError", "a listener of error", "token", "random", "encode", "decode"].includes(hook);
    if (tells && !reported.includes("application")) failed.push(`${hook} ${way}: not reported, but ${reported}`);
    mine.close();
  }
}
say({ hooks, wrong: failed });
process.exit(0);
