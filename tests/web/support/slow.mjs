// linkd.js in Chromium over a slow path, with a large message each way at once, and small ones beside them. Says
// {"open": true}, then what came of it; "waits" has the longest wait of small messages by their way.
//   KEY=… node slow.mjs URL SOCKET BYTES      publishes over the node's Unix socket, which is not on the slow path
import http from "node:http";
import { launch, openPage } from "./browser.mjs";
import { until } from "./until.mjs";

const [url, socketPath, bytes] = process.argv.slice(2);
const { KEY } = process.env;
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const post = (channel, data) =>
  new Promise((resolve, reject) => {
    const headers = { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" };
    const call = http.request({ socketPath, path: `/v1/channels/${channel}`, method: "POST", headers }, (answer) => {
      answer.resume().on("end", resolve);
    });
    call.on("error", reject).end(JSON.stringify(data));
  });

const browser = await launch();
const { page, wrong } = await openPage(browser, `${url}/healthz`);
await page.evaluate(async (key) => {
  const { connect } = await import("/linkd.js");
  const it = (globalThis.it = { opened: 0, lengths: [], sent: null, waits: { small: [], other: [], up: [] } });
  const waited = (name) => ({ data }) => it.waits[name].push(Date.now() - data);
  const node = (it.node = connect({ key }));
  const other = (it.other = connect({ key }));
  node.addEventListener("open", () => (it.opened += 1));
  it.subscriptions = [
    node.subscribe("down", ({ data }) => it.lengths.push(data.length)),
    node.subscribe("small", waited("small")),
    other.subscribe("small", waited("other")),
  ];
}, KEY);
await until(() => page.evaluate(() => it.node.isUp && it.other.isUp && it.subscriptions.every(({ next }) => next !== undefined)), 10);
say({ open: true });
await post("down", "d".repeat(Number(bytes)));
await page.evaluate((size) => void it.node.publish("up", "u".repeat(size)).then(({ offset }) => (it.sent = offset)), Number(bytes));
const began = performance.now();
const done = () => page.evaluate(() => it.lengths.length > 0 && it.sent !== null);
while (!(await done()) && performance.now() - began < 30 * Number(bytes)) {
  await post("small", Date.now());
  await page.evaluate(() => {
    const at = Date.now();
    void it.other.publish("small-up", 1).then(() => it.waits.up.push(Date.now() - at));
  });
  await new Promise((resolve) => setTimeout(resolve, 500));
}
const { opened, lengths, sent, waits } = await page.evaluate(() => ({ opened: it.opened, lengths: it.lengths, sent: it.sent, waits: it.waits }));
const longest = Object.fromEntries(Object.entries(waits).map(([way, each]) => [way, Math.max(...each) / 1000]));
say({ seconds: (performance.now() - began) / 1000, opened, lengths, sent, smalls: waits.small.length, waits: longest, wrong });
await browser.close();
process.exit(0);
