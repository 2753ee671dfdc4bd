// linkd.js while its node is killed, stopped, frozen and reloaded: publishes without a pause, some with a timeout that it
// repeats under their id, and follows what it publishes by subscriptions that overlap. Says {"under_way": true}, and when
// a line comes in it ends, compares everything with the log, and says what it found.
//   node chaos.mjs URL
import { createInterface } from "node:readline";
import WebSocket from "ws";
import { Linkd } from "../../../linkd/api/dashboard/linkd.js";
import { until } from "./until.mjs";

const [url] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
let ending = false;
createInterface({ input: process.stdin }).on("line", () => (ending = true));
const node = new Linkd({ url, WebSocket, minDelay: 0.05, maxDelay: 0.3, pingInterval: 1, pingTimeout: 1, maxPending: 1e6 }).open();
const got = { orders: [], all: [], late: [], byType: [] };
const gaps = [];
const errors = new Set();
let connections = 0;
node.addEventListener("open", () => (connections += 1));
node.addEventListener("gap", ({ detail }) => gaps.push(detail));
node.addEventListener("error", ({ detail }) => errors.add(detail.code));
node.on("count", (_, { offset }) => byTypeOf(offset));
const byTypeOf = (offset) => got.byType.push(offset);
node.subscribe("orders", ({ offset, data }) => got.orders.push([offset, data]));
node.subscribe("*", ({ offset }) => got.all.push(offset));
node.subscribe("quiet");
await until(() => node.isUp, 20);
say({ under_way: true });

const acks = []; // offsets by number
const timed = new Map(); // offsets by id
const unsettled = new Set();
let repeats = 0;
async function insist(id) {
  for (;;) {
    try {
      timed.set(id, (await node.publish("timed", id, { id, timeout: 0.3 })).offset);
      return;
    } catch (error) {
      if (error.code !== "timeout") throw error;
      repeats += 1;
    }
  }
}
const insisting = [];
let published = 0;
let late = null;
while (!ending) {
  for (let count = 0; count < 40; count += 1) {
    const number = published;
    published += 1;
    unsettled.add(number);
    node.publish("orders", number, { type: "count" }).then(({ offset }) => {
      acks[number] = offset;
      unsettled.delete(number);
    });
  }
  if (published % 400 === 0) insisting.push(insist(`t-${published}`));
  if (published > 20_000 && !late) late = node.subscribe("orders", ({ offset }) => got.late.push(offset), { from: 1 });
  await new Promise((resolve) => setTimeout(resolve, node._pending.size > 5000 ? 100 : 8));
}
await until(() => unsettled.size === 0, 30).catch(() => {});
await Promise.all(insisting);

const log = { orders: [], all: [], timed: [] };
for (let from = "earliest"; ; ) {
  const page = await (await fetch(`${url}/v1/channels/%3E?from=${from}&limit=10000`)).json();
  for (const { channel, offset, data } of page.records) {
    log.all.push(offset);
    log[channel].push([offset, data]);
  }
  if (page.records.length === 0) break;
  from = page.next;
}
await until(() => got.orders.length >= log.orders.length && got.all.length >= log.all.length && (!late || got.late.length >= log.orders.length), 20).catch(() => {});
const offsets = log.orders.map(([offset]) => offset);
const same = (a, b) => a.length === b.length && a.every((each, at) => each === b[at]);
say({
  published,
  settled: published - unsettled.size,
  connections,
  repeats,
  timed: timed.size,
  lost: acks.filter((offset) => !offset).length,
  log_in_order_once: same(log.orders.map(([, data]) => data), acks.map((_, at) => at)),
  offsets_right: same(offsets, acks),
  timed_once: log.timed.length === timed.size && log.timed.every(([offset, id]) => timed.get(id) === offset),
  subscriber: same(got.orders.map(([offset]) => offset), offsets),
  overlapping: same(got.all, log.all),
  late: late === null || same(got.late, offsets),
  by_type: same(got.byType, offsets),
  gaps: gaps.length,
  errors: [...errors],
});
node.close();
process.exit(0);
