// linkd.js across restarts of its node: publishes without a pause and follows what it publishes; a number as an
// argument says for how many seconds. Says {"under_way": true} once it runs, and what came of it at the end.
//   node in_flight.mjs URL SECONDS
import WebSocket from "ws";
import { Linkd } from "../../../linkd/api/dashboard/linkd.js";
import { until } from "./until.mjs";

const [url, seconds] = process.argv.slice(2);
const node = new Linkd({ url, WebSocket, minDelay: 0.1, maxDelay: 0.5 }).open();
const arrived = [];
const byType = [];
let connections = 0;
node.addEventListener("open", () => (connections += 1));
node.on("count", (data) => byType.push(data));
node.subscribe("orders", ({ data }) => arrived.push(data));
await until(() => node.isUp, 20);
const acks = [];
const end = performance.now() + Number(seconds) * 1000;
process.stdout.write('{"under_way": true}\n');
while (performance.now() < end) {
  acks.push(node.publish("orders", acks.length, { type: "count" }));
  if (acks.length % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 10));
}
const offsets = (await Promise.all(acks)).map(({ offset }) => offset);
await until(() => arrived.length >= acks.length, 20).catch(() => {});
const ordered = (list) => list.every((each, at) => each === at);
process.stdout.write(`${JSON.stringify({
  published: acks.length,
  connections,
  offsets_rise: offsets.every((offset, at) => at === 0 || offset > offsets[at - 1]),
  arrived: arrived.length,
  in_order: ordered(arrived),
  by_type_once: byType.length === acks.length && ordered(byType),
})}\n`);
node.close();
