// linkd.js in Node.js, against a stand-in for the node whose faults are at hand.
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { from } from "rxjs";
import WebSocket from "ws";
import { Linkd, LinkdError, connect } from "../../linkd/api/dashboard/linkd.js";
import { StubNode } from "./support/stub.mjs";
import { until } from "./support/until.mjs";

const KEY = "k".repeat(32);
const FAST = { minDelay: 0.01, maxDelay: 0.05, pingInterval: 0.1, pingTimeout: 0.15, stableAfter: 0.05, connectTimeout: 1 };
let stub;
let opened;

beforeEach(async () => {
  stub = await new StubNode({ key: KEY }).start();
  opened = [];
});
afterEach(async () => {
  for (const each of opened) each.close();
  await stub.stop();
});

function client(options = {}, Class = Linkd) {
  const node = new Class({ url: stub.url, key: KEY, WebSocket, ...FAST, ...options });
  opened.push(node);
  return node.open();
}
const up = (node) => until(() => node.isUp);

async function restart(pause = 30) {
  await stub.stop();
  await new Promise((resolve) => setTimeout(resolve, pause));
  await stub.start();
}

test("a key goes along as a subprotocol: nothing but the WebSocket is needed", async () => {
  const node = client({ fetch: () => assert.fail("nothing is fetched") });
  await up(node);
  stub.cutConnections();
  await until(() => stub.seen.upgrades.length === 2 && node.isUp);
  assert.deepEqual(stub.seen.upgrades, [KEY, KEY]);
});

test("every connection has a fresh token, and one that can't be had twice costs no backoff", async () => {
  let failures = 2;
  const token = async () => {
    if (failures > 0) throw new Error(`once more, ${(failures -= 1)}`);
    return stub.token();
  };
  const node = client({ key: undefined, token, connectTimeout: 5 });
  await up(node);
  assert.equal(node.status.value.attempts, 0);
  stub.cutConnections();
  await until(() => stub.seen.upgrades.length === 2 && node.isUp);
  assert.equal(new Set(stub.seen.upgrades).size, 2);
  assert.ok(stub.seen.upgrades.every((token) => /^[\w-]{20,}$/.test(token)));
});

for (const [how, options] of [["status", {}], ["close", { origin: "http://127.0.0.1:1" }]]) {
  test(`a refused key is told as rejected and tried again slowly, by ${how}`, async () => {
    class FromPage extends WebSocket {
      constructor(url, protocols) {
        super(url, protocols, options);
      }
    }
    const errors = [];
    const node = client({ key: "wrong", maxDelay: 5, WebSocket: FromPage });
    node.addEventListener("error", (event) => errors.push(event.detail));
    await until(() => node.status.value.state === "rejected");
    assert.match(errors[0].message, how === "close" ? /^a key is needed$/ : /401/);
    assert.ok(node.status.value.retrySeconds >= 4);
  });
}

test("headers go with a publish and come with a message", async () => {
  const node = client();
  await up(node);
  const heard = [];
  node.subscribe("orders", (message) => heard.push(message));
  await node.publish("orders", 1, { headers: { "trace-id": "7" } });
  assert.deepEqual(stub.seen.frames.find((frame) => frame.type === "message").headers, { "trace-id": "7" });
  const frame = { type: null, channel: "orders", offset: 50, origin: "edge" };
  stub.deliverAll({ ...frame, headers: { a: "b" }, data: 2 });
  stub.deliverAll({ ...frame, offset: 51, unreadable: true, base64: "kcA=" });
  await until(() => heard.length >= 2 && heard.at(-1).offset === 51);
  assert.deepEqual(heard.at(-2).headers, { a: "b" });
  assert.deepEqual(heard.at(-1).headers, {});
  assert.equal(heard.at(-1).unreadable, true);
  assert.deepEqual([...heard.at(-1).data], [0x91, 0xc0]);
  await assert.rejects(node.publish("orders", 1, { headers: { a: 1 } }), { code: "malformed" });
});

test("a token can come from the caller, afresh each time", async () => {
  let asked = 0;
  const node = client({ key: undefined, token: async () => ((asked += 1), stub.token()) });
  await up(node);
  stub.cutConnections();
  await until(() => asked === 2 && node.isUp);
});

test("where the node answers, the backoff is jittered over the whole range, doubles, and is capped", async () => {
  function Starting() {
    return { set onclose(call) { setTimeout(() => call({ code: 1013, reason: "the node is starting" }), 1); }, close() {} };
  }
  const delays = [];
  const node = client({ key: undefined, WebSocket: Starting, random: () => 0.5, minDelay: 0.01, maxDelay: 0.05 });
  node.status.subscribe(({ state, retrySeconds }) => state === "waiting" && delays.push(retrySeconds));
  await until(() => delays.length >= 5);
  assert.deepEqual(delays.slice(0, 5), [0.005, 0.01, 0.02, 0.025, 0.025]);
});

test("while nothing answers, attempts stay equally dense", async () => {
  await stub.stop();
  const delays = [];
  const node = client({ random: () => 1, minDelay: 0.01, maxDelay: 5 });
  node.status.subscribe(({ state, retrySeconds }) => state === "waiting" && delays.push(retrySeconds));
  await until(() => delays.length >= 12);
  await stub.start();
  await until(() => node.isUp, 4);
  assert.ok(delays.every((each) => Math.abs(each - 0.012) < 1e-9), `${delays}`);
});

test("pages come back over as many seconds as the node has announced, at its opening or with a pong", async () => {
  for (const [announced, ponged, spread] of [[0.3, undefined, 0.3], [0.3, 0.6, 0.6], [7, 0, 0.01], [1e9, undefined, 30]]) {
    let answer = null;
    class Announcing extends WebSocket {
      set onmessage(call) {
        super.onmessage = ({ data }) => {
          const frame = JSON.parse(data);
          if (frame.type === "opened") frame.data.return_spread = announced;
          if (frame.type === "pong" && ponged !== undefined) answer = frame.data = { return_spread: ponged };
          call({ data: JSON.stringify(frame) });
        };
      }
    }
    const node = client({ WebSocket: Announcing, random: () => 1, minDelay: 0.01, maxDelay: 5, pingInterval: 0.05 });
    await until(() => node.isUp && (ponged === undefined || answer));
    await stub.stop();
    await until(() => node.status.value.state === "waiting");
    assert.equal(node.status.value.retrySeconds, spread);
    node.close();
    await stub.start();
  }
});

test("it gives up after as many attempts as asked, and says so", async () => {
  await stub.stop();
  const states = [];
  const node = client({ key: undefined, maxAttempts: 3 });
  node.addEventListener("status", (event) => states.push(event.detail.state));
  const lost = node.publish("orders", 1).catch((error) => error);
  await until(() => node.status.value.state === "stopped");
  assert.equal((await lost).code, "unsettled");
  assert.equal(states.filter((state) => state === "connecting").length, 2); // the first was before we listened
  await stub.start();
});

test("silence drops the connection, and the next one works", async () => {
  const closed = [];
  const node = client();
  node.addEventListener("close", (event) => closed.push(event.detail.reason));
  await up(node);
  const began = performance.now();
  stub.mute = true;
  await until(() => closed.length === 1);
  const took = (performance.now() - began) / 1000;
  assert.match(closed[0], /nothing heard/);
  assert.ok(took >= 0.15 && took < 4, `noticed after ${took}`);
  stub.mute = false;
  await up(node);
});

test("pings keep a quiet connection up, and a node's ping is answered", async () => {
  const node = client();
  await up(node);
  for (const each of stub.sockets.clients) stub.send(each, { type: "ping" });
  await until(() => stub.seen.frames.filter(({ type }) => type === "ping").length >= 5);
  assert.equal(stub.seen.upgrades.length, 1);
  assert.equal(stub.seen.frames.filter(({ type }) => type === "pong").length, 1);
  assert.ok(node.isUp);
});

test("a subscription goes on by offset after a restart: nothing missed, nothing twice", async () => {
  const got = [];
  const node = client();
  node.subscribe("orders.*", ({ offset, data }) => got.push([offset, data]));
  await up(node);
  await until(() => stub.seen.frames.some(({ type }) => type === "subscribe"));
  stub.publish("orders.a", "created", 1);
  stub.publish("other", "created", "not this");
  await until(() => got.length === 1);
  await stub.stop();
  stub.publish("orders.b", "created", 2);
  stub.publish("orders.b", null, 3);
  await stub.start();
  await until(() => got.length === 3);
  stub.publish("orders.c", "created", 4);
  await until(() => got.length === 4);
  assert.deepEqual(got, [[1, 1], [3, 2], [4, 3], [5, 4]]);
});

test("messages between subscribing and the first message are not lost to a cut", async () => {
  const got = [];
  const node = client();
  const subscription = node.subscribe("orders", ({ data }) => got.push(data));
  await until(() => subscription.next !== undefined);
  await stub.stop();
  stub.publish("orders", "created", "meanwhile");
  await stub.start();
  await until(() => got.length === 1);
  assert.deepEqual(got, ["meanwhile"]);
});

const begun = (subscriptions) => until(() => subscriptions.every(({ next }) => next !== undefined));
const stored = (offset, channel, type = "x") => ({ type, data: offset, channel, offset, origin: "edge-1" });

test("each subscription has a stream of its own, and one that is refused ends alone", async () => {
  const got = { all: [], orders: [] };
  const node = client();
  await up(node);
  const orders = node.subscribe("orders", ({ data }) => got.orders.push(data));
  const all = node.subscribe(">", ({ data }) => got.all.push(data));
  await begun([all, orders]);
  const [socket] = stub.sockets.clients;
  assert.deepEqual([...socket.patterns.values()], ["orders", ">"]);
  stub.publish("orders", "a", 1);
  stub.publish("other", "a", 2);
  await until(() => got.all.length === 2);
  all.unsubscribe();
  await node.publish("orders", 3);
  assert.deepEqual([...socket.patterns.values()], ["orders"]);
  await until(() => got.orders.length === 2);
  assert.deepEqual(got, { all: [1, 2], orders: [1, 3] });
  const secret = node.subscribe("secret.*");
  await until(() => !node._subscriptions.has(secret));
  assert.ok(node._subscriptions.has(orders));
});

const consume = (node, call, options) => node.subscribe("orders", call, { consumer: "billing", ...options });

test("a consumer handles one message after the other, and a later program goes on behind them", async () => {
  for (const each of [1, 2, 3, 4]) stub.publish("orders", "created", each);
  const node = client();
  const [begun, done] = [[], []];
  let goOn = null;
  consume(node, async ({ data }) => {
    begun.push(data);
    if (data === 3) await new Promise((resolve) => (goOn = resolve));
    done.push(data);
  }, { from: "earliest" });
  await until(() => goOn !== null && stub.cursors.get("billing") === 3);
  assert.deepEqual([begun, done], [[1, 2, 3], [1, 2]]);
  node.close();
  const got = [];
  const next = client();
  consume(next, ({ data }) => void got.push(data), { from: "earliest" });
  await until(() => stub.cursors.get("billing") === 5);
  assert.deepEqual(got, [3, 4]);
  goOn();
  stub.publish("other", "created", 5);
  const { _id: subscription } = [...next._subscriptions][0];
  for (const each of stub.sockets.clients) stub.send(each, { type: "position", data: { subscription, next: 6 } });
  await until(() => stub.cursors.get("billing") === 6);
});

test("what a consumer had not done when the connection fell comes again; an ack of before counts for nothing", async () => {
  const node = client();
  const begun = [];
  const waiting = [];
  const subscription = consume(node, ({ data }) => {
    begun.push(data);
    return new Promise((resolve) => waiting.push(resolve));
  });
  await until(() => subscription.next === 1);
  stub.publish("orders", "created", "a");
  await until(() => begun.length === 1);
  stub.cutConnections();
  await until(() => stub.seen.upgrades.length === 2 && subscription._begun);
  waiting[0]();
  await until(() => begun.length === 2);
  assert.equal(stub.cursors.get("billing"), 1);
  waiting[1]();
  await until(() => stub.cursors.get("billing") === 2);
  assert.deepEqual(begun, ["a", "a"]);
});

test("a message whose function fails is reported and comes again, and nothing passes it", async (t) => {
  t.mock.method(console, "error", () => {});
  const node = client();
  const [got, reported] = [[], []];
  node.addEventListener("error", ({ detail }) => reported.push(detail.code));
  const subscription = consume(node, async ({ data }) => {
    got.push(data);
    if (data === 1 && got.length < 2) throw new Error("not yet");
  });
  await until(() => subscription.next === 1);
  stub.publish("orders", "created", 1);
  stub.publish("orders", "created", 2);
  await until(() => got.length === 1);
  assert.equal(stub.cursors.get("billing"), 1);
  await until(() => stub.cursors.get("billing") === 3, 3);
  assert.deepEqual([got, reported], [[1, 1, 2], ["application"]]);
});

test("a consumer that stops itself has its message acknowledged; calls by type are not a consumer's", async () => {
  const node = client();
  const [got, byType] = [[], []];
  node.on("created", (data) => byType.push(data));
  const subscription = consume(node, ({ data }) => {
    got.push(data);
    if (data === 2) subscription.unsubscribe();
  });
  const plain = node.subscribe("orders");
  await begun([subscription, plain]);
  for (const each of [1, 2, 3]) stub.publish("orders", "created", each);
  await until(() => byType.length === 3 && !node._subscriptions.has(subscription));
  await until(() => stub.cursors.get("billing") === 3);
  assert.deepEqual([got, byType], [[1, 2], [1, 2, 3]]);
});

test("a consumer that another program took ends, and says so", async () => {
  const node = client();
  const reported = [];
  node.addEventListener("error", ({ detail }) => reported.push(detail.code));
  const subscription = consume(node, () => {});
  await begun([subscription]);
  const data = { id: null, error: "in-use", message: "another client follows as this consumer", subscription: subscription._id };
  for (const each of stub.sockets.clients) stub.send(each, { type: "error", data });
  await until(() => reported.length === 1);
  assert.deepEqual([reported, node._subscriptions.size], [["in-use"], 0]);
});

test("a consumer's name and function are checked in the call", () => {
  const node = client();
  for (const wrong of ["", "a b", "resume.x", "-a", "x".repeat(64), 7, {}]) {
    assert.throws(() => consume(node, () => {}, { consumer: wrong }), /TypeError: consumer: expected/);
  }
  assert.throws(() => consume(node, null), TypeError);
});

test("a second subscription gets the history while messages come live", async () => {
  const got = { live: [], history: [], byType: [] };
  const node = client();
  node.on("x", (data) => got.byType.push(data));
  await up(node);
  const live = node.subscribe("a", ({ offset }) => got.live.push(offset));
  await begun([live]);
  for (let count = 0; count < 50; count += 1) stub.publish("a", "x", count);
  const history = node.subscribe("a", ({ offset }) => got.history.push(offset), { from: 1 });
  for (let count = 50; count < 100; count += 1) stub.publish("a", "x", count);
  await until(() => history.next === 101 && live.next === 101);
  const all = Array.from({ length: 100 }, (_, index) => index + 1);
  assert.deepEqual(got, { live: all, history: all, byType: all.map((offset) => offset - 1) });
});

test("patterns that overlap in part: everything once, by type too, however far one is ahead and when it falls", async () => {
  const got = { left: [], right: [], byType: [] };
  const node = client();
  node.on("x", (data) => got.byType.push(data));
  await up(node);
  const left = node.subscribe("a.*", ({ offset }) => got.left.push(offset));
  const right = node.subscribe("*.b", ({ offset }) => got.right.push(offset));
  await begun([left, right]);
  const [socket] = stub.sockets.clients;
  const [first, second] = [...socket.patterns.keys()];
  stub.records.push(stored(1, "c.b"), stored(2, "a.b"), stored(3, "c.b"));
  stub.next = 4;
  // The stream of *.b has reached 2, that of a.* nothing yet, and then the connection falls.
  stub.deliver(socket, stub.records[0], second);
  stub.deliver(socket, stub.records[1], second);
  await until(() => got.right.length === 2);
  stub.cutConnections();
  await until(() => got.right.length === 3 && got.left.length === 1);
  await node.publish("a.b", 4, { type: "x" });
  await until(() => got.left.length === 2 && got.right.length === 4);
  assert.deepEqual(got, { left: [2, 4], right: [1, 2, 3, 4], byType: [1, 2, 3, 4] });
  assert.ok(first);
});

test("calls by type miss nothing when the subscription that brings them ends behind another", async () => {
  const byType = [];
  const node = client();
  node.on("x", (data) => byType.push(data));
  await up(node);
  const older = node.subscribe("a");
  const younger = node.subscribe(">");
  await begun([older, younger]);
  const [socket] = stub.sockets.clients;
  const [slow, quick] = [...socket.patterns.keys()];
  stub.records.push(stored(1, "a"), stored(2, "a"), stored(3, "b"));
  stub.next = 4;
  for (const record of stub.records) stub.deliver(socket, record, quick);
  await until(() => younger.next === 4);
  assert.deepEqual(byType, [3]);
  older.unsubscribe();
  stub.deliver(socket, stub.records[0], slow);
  stub.deliver(socket, stub.records[1], slow);
  stub.send(socket, { type: "position", data: { subscription: slow, next: 4, epoch: "e-1" } });
  await until(() => node._subscriptions.size === 1);
  await node.publish("a", 4, { type: "x" });
  await until(() => byType.length === 4);
  assert.deepEqual(byType, [3, 1, 2, 4]);
});

test("a subscription that is made again brings the history to the calls by type again", async () => {
  const byType = [];
  const node = client();
  node.on("x", (data) => byType.push(data));
  await up(node);
  const first = node.subscribe("a");
  await begun([first]);
  stub.publish("a", "x", 1);
  await until(() => byType.length === 1);
  const behind = node.subscribe("b"); // it lags: what ended ahead of it is remembered
  first.unsubscribe();
  node.subscribe("a", null, { from: 1 });
  await until(() => byType.length === 2);
  behind.unsubscribe();
  assert.deepEqual(byType, [1, 1]);
});

test("a quiet subscription resumes where the node said it is, not at its last message", async () => {
  const node = client();
  const quiet = node.subscribe("t.rare");
  await up(node);
  await begun([quiet]);
  for (let count = 0; count < 20; count += 1) stub.publish("t.busy", "x", count);
  const [socket] = stub.sockets.clients;
  stub.send(socket, { type: "position", data: { subscription: [...socket.patterns.keys()][0], next: 21, epoch: "e-1" } });
  await until(() => quiet.next === 21);
  stub.cutConnections();
  await until(() => stub.seen.frames.filter(({ type }) => type === "subscribe").length === 2);
  assert.deepEqual(stub.seen.frames.filter(({ type }) => type === "subscribe").at(-1).data.seen, [["e-1", 21]]);
});

for (const [what, change, first] of [
  ["replaced", () => Object.assign(stub, { log: "l-2", epochs: [["e-9", 1]], records: [], next: 1 }), 1],
  ["put back to an older copy", () => Object.assign(stub, { epochs: [["e-1", 1], ["e-2", 4]], records: stub.records.slice(0, 3), next: 4 }), 4],
]) {
  test(`a log that was ${what}: nothing of the new one is missed, and it is said`, async () => {
    const [got, errors] = [[], []];
    const node = client();
    node.addEventListener("error", ({ detail }) => errors.push(detail.code));
    const subscription = node.subscribe("a", ({ offset, data }) => got.push([offset, data]));
    await up(node);
    await begun([subscription]);
    for (let count = 1; count <= 10; count += 1) stub.publish("a", "x", count);
    await until(() => got.length === 10);
    got.length = 0;
    await stub.stop();
    change();
    stub.ids.clear();
    for (let count = 1; count <= 5; count += 1) stub.publish("a", "x", `new ${count}`);
    await stub.start();
    await until(() => got.length === 5);
    assert.deepEqual(got, [1, 2, 3, 4, 5].map((count) => [first + count - 1, `new ${count}`]));
    assert.deepEqual(errors.filter((code) => code === "log-replaced"), ["log-replaced"]);
  });
}

test("a subscription that lost its right is asked for again, and misses nothing", async () => {
  const [got, errors] = [[], []];
  const node = client();
  node.addEventListener("error", ({ detail }) => errors.push(detail.code));
  const subscription = node.subscribe("a", ({ data }) => got.push(data));
  await up(node);
  await begun([subscription]);
  const [socket] = stub.sockets.clients;
  const [name] = socket.patterns.keys();
  stub.away.add("a");
  socket.patterns.clear();
  stub.send(socket, { type: "error", data: { id: null, error: "channel-refused", message: "no more", subscription: name } });
  await until(() => errors.length === 1);
  stub.publish("a", "x", 1);
  stub.cutConnections();
  await until(() => stub.seen.frames.filter(({ type }) => type === "subscribe").length === 2 && node.isUp);
  stub.away.clear();
  stub.cutConnections();
  await until(() => got.length === 1);
  assert.deepEqual(errors, ["channel-refused"]);
});

test("volatile messages, text and bytes arrive as what they are", async () => {
  const got = [];
  const node = client();
  const subscription = node.subscribe(">", ({ offset, type, data }) => got.push([offset, type, data]));
  await until(() => subscription.next !== undefined);
  stub.deliverAll({ channel: "telemetry", offset: null, type: null, origin: "edge-1", data: { t: 1 } });
  stub.deliverAll({ channel: "notes", offset: 7, type: "note", origin: "edge-1", text: "hello" });
  stub.deliverAll({ channel: "files", offset: 8, type: null, origin: "edge-1", base64: "AP8=" });
  stub.deliverAll({ channel: "orders", offset: 9, type: "status", origin: "edge-1", data: null });
  await until(() => got.length === 4);
  assert.deepEqual(got, [[0, null, { t: 1 }], [7, "note", "hello"], [8, null, Uint8Array.of(0, 255)], [9, "status", null]]);
});

test("what the node sends twice arrives once", async () => {
  const got = [];
  const node = client();
  node.subscribe("orders", ({ data }) => got.push(data));
  await up(node);
  await until(() => stub.seen.frames.some(({ type }) => type === "subscribe"));
  stub.publish("orders", "a", 1);
  stub.deliverAll(stub.records[0]);
  stub.publish("orders", "a", 2);
  await until(() => got.includes(2));
  assert.deepEqual(got, [1, 2]);
});

test("calls by type are never doubled, not by adding twice nor by reconnecting", async () => {
  const got = [];
  const created = (data) => got.push(data);
  const node = client();
  node.on("created", created);
  node.on("created", created);
  node.subscribe(">");
  await until(() => stub.seen.frames.some(({ type }) => type === "subscribe"));
  stub.cutConnections();
  await until(() => stub.seen.frames.filter(({ type }) => type === "subscribe").length === 2);
  stub.publish("orders", "created", 1);
  stub.publish("orders", "deleted", 2);
  await until(() => node.isUp && got.length === 1);
  node.off("created", created);
  stub.publish("orders", "created", 3);
  await node.publish("orders", "end");
  assert.deepEqual(got, [1]);
});

test("two subscriptions to one pattern: both hear", async () => {
  const got = [[], []];
  const node = client();
  await up(node);
  const first = node.subscribe("orders", ({ data }) => got[0].push(data));
  const second = node.subscribe("orders", ({ data }) => got[1].push(data));
  await until(() => first.next !== undefined);
  stub.publish("orders", "a", 1);
  await until(() => got[1].length === 1);
  first.unsubscribe();
  await node.publish("orders", 2);
  second.unsubscribe();
  await node.publish("orders", 3);
  assert.deepEqual(got, [[1], [1, 2]]);
});

test("a publish that was in flight is sent again under its id and stored once", async () => {
  const node = client();
  await up(node);
  stub.dropAcks = 1;
  const ack = await node.publish("orders", { total: 1 }, { type: "created", id: "order-1" });
  assert.deepEqual(ack, { id: "order-1", offset: 1 });
  assert.equal(stub.records.length, 1);
  assert.equal(stub.seen.frames.filter(({ id }) => id === "order-1").length, 2);
});

test("two thousand publishes wait their turn: never more than the window is under way", async () => {
  const node = client({ pingInterval: 5 });
  await up(node);
  stub.mute = true;
  const acks = Array.from({ length: 2000 }, (_, index) => node.publish("orders", index));
  await until(() => stub.records.length === 256);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(stub.records.length, 256);
  stub.mute = false;
  stub.cutConnections();
  await Promise.all(acks);
  assert.deepEqual(stub.records.map(({ data }) => data), Array.from({ length: 2000 }, (_, index) => index));
});

test("what can't be encoded is refused at once and holds up nothing", async () => {
  const node = client();
  await up(node);
  await assert.rejects(node.publish("orders", 1n), TypeError);
  await node.publish("orders", "after");
  assert.deepEqual(stub.records.map(({ data }) => data), ["after"]);
});

test("large publishes wait their turn by their size, and one is always under way", async () => {
  const node = client({ pingInterval: 5 });
  await up(node);
  stub.mute = true;
  const acks = Array.from({ length: 8 }, (_, index) => node.publish("orders", `${index}${"x".repeat(100_000)}`));
  acks.push(node.publish("orders", "8".repeat(400_000)), node.publish("orders", "9"));
  await until(() => stub.records.length === 2);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(stub.records.length, 2);
  stub.mute = false;
  stub.cutConnections();
  await Promise.all(acks);
  assert.deepEqual(stub.records.map(({ data }) => data[0]), [..."0123456789"]);
});

test("a subscription from the earliest gets what there was", async () => {
  stub.publish("orders", "a", 1);
  stub.publish("orders", "a", 2);
  const got = [];
  const node = client();
  node.subscribe("orders", ({ data }) => got.push(data));
  await up(node);
  node.subscribe("orders", ({ data }) => got.push(`again ${data}`), { from: "earliest" });
  await until(() => got.includes("again 2"));
  assert.ok(stub.seen.frames.some(({ data }) => data?.from === "earliest"));
  stub.publish("orders", "a", 3);
  await until(() => got.includes("again 3"));
  assert.deepEqual(got.filter((each) => typeof each === "number"), [3]);
});

test("a node that is stopping is waited for", async () => {
  const node = client();
  await up(node);
  stub.unavailable = 2;
  assert.equal((await node.publish("orders", 1)).offset, 1);
  stub.unavailable = 1;
  await assert.rejects(node.publish("orders", 1, { whenDown: "reject" }), { code: "unavailable" });
});

test("a hundred publishes across a restart are all settled, in order, each stored once", async () => {
  const node = client();
  await up(node);
  const acks = Array.from({ length: 100 }, (_, index) => node.publish("orders", index));
  await restart();
  const offsets = (await Promise.all(acks)).map(({ offset }) => offset);
  assert.deepEqual(stub.records.map(({ data }) => data), Array.from({ length: 100 }, (_, index) => index));
  assert.deepEqual(offsets, Array.from({ length: 100 }, (_, index) => index + 1));
});

test("a publish may be told to fail while the connection is down", async () => {
  const node = client({ whenDown: "reject" });
  await assert.rejects(node.publish("orders", 1), { code: "down" });
  await up(node);
  stub.dropAcks = 1;
  await assert.rejects(node.publish("orders", 2, { id: "x" }), { code: "unsettled", id: "x" });
  await assert.rejects(node.publish("orders", 3, { whenDown: "wait", type: "ping" }), { code: "bad-type" });
});

test("a refusal rejects the publish or ends the subscription, and names why", async () => {
  const errors = [];
  const node = client();
  node.addEventListener("error", (event) => errors.push(event.detail));
  node.subscribe("secret.plans");
  await until(() => errors.length === 1);
  assert.ok(errors[0] instanceof LinkdError);
  assert.equal(errors[0].code, "channel-refused");
  stub.cutConnections();
  await up(node);
  assert.equal(stub.seen.frames.filter(({ type }) => type === "subscribe").length, 1);
});

test("a publish that nobody answers ends at its timeout", async () => {
  const node = client({ pingInterval: 5 });
  await up(node);
  stub.mute = true;
  await assert.rejects(node.publish("orders", 1, { timeout: 0.05 }), { code: "timeout" });
});

test("an asynchronous onError that fails is not called for its own failure", async (t) => {
  t.mock.method(console, "error", () => {});
  let calls = 0;
  class Failing extends Linkd {
    onError() {
      calls += 1;
      return Promise.reject(new Error("my label is gone"));
    }
  }
  await stub.stop();
  const node = client({}, Failing);
  node.addEventListener("error", () => Promise.reject(new Error("this one too")));
  await until(() => calls > 0);
  await stub.start();
  await up(node);
  await node.publish("orders", 1);
  assert.ok(calls < 100, `${calls} calls`);
});

test("status is an observable: the present value first, then each change", async () => {
  const seen = [];
  const node = client();
  const subscription = from(node.status).subscribe(({ state }) => seen.push(state));
  await up(node);
  stub.cutConnections();
  await until(() => seen.length >= 5);
  assert.deepEqual(seen.slice(0, 5), ["connecting", "up", "waiting", "connecting", "up"]);
  subscription.unsubscribe();
  node.close();
  assert.equal(seen.at(-1), "up");
});

test("hooks of a subclass are called, and onMessage may keep a message back", async () => {
  const seen = [];
  class Mine extends Linkd {
    onOpen() {
      seen.push("open");
    }
    onMessage({ data }) {
      seen.push(data);
      return data !== "hidden";
    }
    onClose() {
      seen.push("close");
    }
  }
  const got = [];
  const node = client({}, Mine);
  node.subscribe("orders", ({ data }) => got.push(data));
  await node.publish("orders", "hidden");
  await node.publish("orders", "shown");
  stub.cutConnections();
  await until(() => seen.length === 5);
  assert.deepEqual(seen, ["open", "hidden", "shown", "close", "open"]);
  assert.deepEqual(got, ["shown"]);
});

test("frames go through the caller's encode and decode", async () => {
  const rot = (text) => JSON.stringify({ ...JSON.parse(text), seen: true });
  const got = [];
  const node = client({ encode: (frame) => rot(JSON.stringify(frame)), decode: (text) => ({ ...JSON.parse(text), mark: 1 }) });
  node.subscribe("orders", (message) => got.push(message.mark));
  await node.publish("orders", 1);
  await until(() => got.length === 1);
  assert.equal(got[0], 1);
  assert.ok(stub.seen.frames.every(({ seen }) => seen));
});

test("changes of links arrive", async () => {
  const node = client({ status: true });
  await up(node);
  stub.cut("hub");
  await until(() => node.links.value.get("hub")?.state === "waiting");
  assert.equal(node.links.value.get("hub").reason, "ping-timeout");
});

test("closed is closed: nothing reconnects, what waits is told", async () => {
  const node = connect({ url: stub.url, key: KEY, WebSocket, ...FAST });
  await up(node);
  stub.mute = true;
  const waiting = node.publish("orders", 1);
  node.close();
  await assert.rejects(waiting, { code: "unsettled" });
  stub.mute = false;
  await new Promise((resolve) => setTimeout(resolve, 150));
  assert.equal(stub.seen.upgrades.length, 1);
  assert.equal(node.status.value.state, "stopped");
});
