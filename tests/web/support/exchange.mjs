// All clients of clients.mjs on one node (EDGE), linkd.js on the other (HUB), and a restart between two rounds. In each
// round every client publishes five messages, which must reach the other node; and the other node publishes five, which
// every client must get. Between the rounds it says {"restart": true} and goes on when a line comes in.
//   node exchange.mjs EDGE HUB
import { createInterface } from "node:readline";
import WebSocket from "ws";
import { Linkd } from "../../../linkd/api/dashboard/linkd.js";
import { launch, openPage } from "./browser.mjs";
import * as clients from "./clients.mjs";
import { until } from "./until.mjs";

const [edge, hub] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const ROUND = 5;

const browser = await launch();
const { page, wrong } = await openPage(browser, `${edge}/healthz`);
const all = {
  "rxjs": clients.rxjs(edge),
  "reconnecting-websocket": clients.reconnecting(edge),
  "ws": clients.ws(edge),
  "linkd.js": clients.linkd(edge),
  "WebSocket in Chromium": await clients.browserSocket(page),
  "EventSource in Chromium": await clients.browserEvents(page),
};
const atHub = [];
const far = new Linkd({ url: hub, WebSocket }).open();
far.subscribe("orders", ({ data, origin }) => atHub.push({ ...data, origin }));

async function round(number) {
  for (const [name, it] of Object.entries(all)) {
    await until(() => it.open, 20).catch(() => {
      throw new Error(`${name} is not open`);
    });
  }
  await until(() => far.isUp);
  const senders = Object.entries(all).filter(([, it]) => it.send);
  for (let index = 0; index < ROUND; index += 1) {
    for (const [name, it] of senders) await it.send({ type: "created", data: { name, number, index } });
    await far.publish("orders", { name: "hub", number, index }, { type: "created" });
  }
  const wanted = Array.from({ length: ROUND }, (_, index) => index);
  const of = (messages, name) => messages.filter((message) => message.name === name && message.number === number).map(({ index }) => index);
  const result = {};
  for (const [name, it] of Object.entries(all)) {
    const got = () => of(it.seen.map(({ data }) => data), "hub");
    await until(() => got().length >= ROUND, 10).catch(() => {});
    if (it.send) await until(() => of(atHub, name).length >= ROUND, 10).catch(() => {});
    const same = (list) => JSON.stringify(list) === JSON.stringify(wanted);
    result[name] = { received: same(got()) || got(), published: it.send ? same(of(atHub, name)) || of(atHub, name) : null };
  }
  return result;
}

try {
  const first = await round(1);
  say({ first });
  say({ restart: true });
  await lines.next();
  say({ second: await round(2) });
  const order = atHub.map(({ name, number, index }) => `${name} ${number} ${index}`);
  say({ doubled: order.length - new Set(order).size, wrong });
} finally {
  for (const each of Object.values(all)) each.close();
  far.close();
  await browser.close();
}
