// linkd.js while its node is killed, frozen, filled, given another key and another log: publishes without a pause, some with
// an id and a timeout after which it repeats them, and follows all of it. {"check": true} has it pause, wait until every call
// is settled, compare the calls and the subscription with the log, and say what it found; {"go": true} has it go on.
//   node logs.mjs URL KEY_FILE
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import WebSocket from "ws";
import { Linkd } from "../../../linkd/api/dashboard/linkd.js";
import { until } from "./until.mjs";

const [url, keyFile] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const token = () => readFileSync(keyFile, "utf8").trim();
const node = new Linkd({ url, token, WebSocket, minDelay: 0.05, maxDelay: 0.3, pingInterval: 1, pingTimeout: 1, maxPending: 1e6 });
const errors = {};
node.addEventListener("error", ({ detail }) => (errors[detail.code] = (errors[detail.code] ?? 0) + 1));
let gaps = 0;
node.addEventListener("gap", () => (gaps += 1));
let got = [];
node.open();
node.subscribe("*", ({ channel, offset, data }) => got.push([channel, offset, data]), { from: "earliest" });
await until(() => node.isUp, 20);
say({ under_way: true });

let calls = new Map(); // by channel and number: an offset, the code of a refusal, or null while it is open
let open = 0;
let number = 0;
let paused = false;
let ended = false;

async function publish(channel, data, options) {
  const name = `${channel} ${data}`;
  calls.set(name, null);
  open += 1;
  for (;;) {
    try {
      const outcome = (await node.publish(channel, data, options)).offset;
      calls.set(name, calls.get(name) === null ? outcome : "settled twice");
      break;
    } catch (error) {
      if (error.code === "timeout") continue;
      calls.set(name, error.code ?? String(error));
      break;
    }
  }
  open -= 1;
}

async function log() {
  const all = [];
  for (let from = "earliest"; ; ) {
    const answer = await fetch(`${url}/v1/channels/%3E?from=${from}&limit=10000`, { headers: { authorization: `Bearer ${token()}` } });
    const page = await answer.json();
    for (const { channel, offset, data } of page.records) all.push([channel, offset, data]);
    if (page.records.length === 0) return all;
    from = page.next;
  }
}

async function check() {
  paused = true;
  await until(() => open === 0, 40).catch(() => {});
  const all = await log();
  const last = all.at(-1)?.[1] ?? 0;
  await until(() => (got.at(-1)?.[1] ?? 0) >= last, 20).catch(() => {});
  const stored = new Map();
  const wrong = { lost: 0, twice: 0, offset: 0, order: 0, "refused, but stored": 0, unsettled: open, subscriber: 0, other: {} };
  const highest = {};
  for (const [channel, offset, data] of all) {
    const name = `${channel} ${data}`;
    if (stored.has(name)) wrong.twice += 1;
    stored.set(name, offset);
    if (channel === "orders" && data < (highest[channel] ?? -1)) wrong.order += 1;
    highest[channel] = data;
  }
  const refused = {};
  for (const [name, outcome] of calls) {
    if (typeof outcome === "number") {
      if (!stored.has(name)) wrong.lost += 1;
      else if (stored.get(name) !== outcome) wrong.offset += 1;
    } else if (outcome === "log-full") {
      refused[outcome] = (refused[outcome] ?? 0) + 1;
      if (stored.has(name)) wrong["refused, but stored"] += 1;
    } else wrong.other[outcome] = (wrong.other[outcome] ?? 0) + 1;
  }
  const same = got.length === all.length && got.every((each, at) => each.every((part, place) => part === all[at][place]));
  if (!same) wrong.subscriber = `${got.length} of ${all.length}`;
  say({ published: calls.size, stored: all.length, refused, gaps, errors, wrong });
  calls = new Map();
  got = [];
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const asked = JSON.parse(line);
  if (asked.check) void check();
  else if (asked.end) ended = true;
  else paused = false;
});
while (!ended) {
  for (let count = 0; count < 40 && !paused; count += 1) {
    number += 1;
    if (number % 400 === 0) void publish("timed", number, { id: `t-${number}`, timeout: 0.3 });
    else void publish("orders", number, number % 7 === 0 ? { id: `o-${number}` } : {});
  }
  await new Promise((resolve) => setTimeout(resolve, open > 5000 ? 100 : 8));
}
node.close();
process.exit(0);
