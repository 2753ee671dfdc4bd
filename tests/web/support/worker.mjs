// A named consumer of linkd.js that works through numbers which a second client publishes, while its node ends and comes
// back. Says {"handled": N} once it handled the first, and at the end what it handled and where the node has its cursor.
//   node worker.mjs URL FIRST COUNT
import WebSocket from "ws";
import { connect } from "../../../linkd/api/dashboard/linkd.js";
import { until } from "./until.mjs";

const [url, ...numbers] = process.argv.slice(2);
const [first, count] = numbers.map(Number);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
console.error = () => {};
const options = { url, WebSocket, minDelay: 0.05, maxDelay: 0.2 };
const [worker, source] = [connect(options), connect(options)];
const handled = [];
let failures = 0;
worker.subscribe("orders", async ({ data }) => {
  await new Promise((resolve) => setTimeout(resolve, data % 7));
  if (data % 100 === 50 && failures++ % 2 === 0) throw new Error("the first time");
  handled.push(data);
  if (handled.length === 1) say({ handled: 1 });
}, { consumer: "billing", from: "earliest" });
let last = 0;
for (let number = first; number < first + count; number += 1) {
  ({ offset: last } = await source.publish("orders", number));
}
const cursor = async () => {
  const { consumers } = await (await fetch(`${url}/v1/consumers`)).json();
  return consumers.find(({ name }) => name === "billing")?.next;
};
await until(async () => (await cursor().catch(() => 0)) === last + 1, 20).catch(() => {});
const once = [...new Set(handled)];
say({
  once: once.length,
  in_order: once.every((each, at) => each === first + at),
  repeats: handled.length - once.length,
  failures,
  behind: last + 1 - (await cursor()),
});
worker.close();
source.close();
