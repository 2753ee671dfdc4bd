// linkd.js in Chromium behind a path of 75 kB/s, with a large message each way at once: 12 s in which a page sees no part of
// them pass. Says {"open": true}, {"sent": true} once they are on their way, then what came of it.
//   node slow.mjs URL
import net from "node:net";
import { launch, openPage } from "./browser.mjs";
import { until } from "./until.mjs";

const BYTES_PER_SECOND = 75_000;
const LARGE = 900_000;
const [url] = process.argv.slice(2);
const { port } = new URL(url);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

/** Pass bytes on at the rate of the path; what waits for that waits at the sender. */
function pass(from, to) {
  let waiting = Buffer.alloc(0);
  from.on("data", (data) => {
    waiting = Buffer.concat([waiting, data]);
    if (waiting.length > 30_000) from.pause();
  });
  const timer = setInterval(() => {
    const now = waiting.subarray(0, BYTES_PER_SECOND / 50);
    waiting = waiting.subarray(now.length);
    if (now.length > 0 && !to.destroyed) to.write(now);
    if (waiting.length < 30_000) from.resume();
  }, 20);
  from.on("error", () => {});
  from.on("close", () => {
    clearInterval(timer);
    to.destroy();
  });
}
const relay = net.createServer((near) => {
  const far = net.connect(Number(port), "127.0.0.1");
  pass(near, far);
  pass(far, near);
});
await new Promise((resolve) => relay.listen(0, "127.0.0.1", resolve));

const browser = await launch();
const { page, wrong } = await openPage(browser, `http://127.0.0.1:${relay.address().port}/healthz`);
await page.evaluate(async () => {
  const { connect } = await import("/linkd.js");
  const it = (globalThis.it = { opened: 0, lengths: [], small: 0, sent: null });
  const node = (it.node = connect());
  node.addEventListener("open", () => (it.opened += 1));
  it.subscriptions = [node.subscribe("down", ({ data }) => it.lengths.push(data.length)), node.subscribe("small", () => (it.small += 1))];
});
await until(() => page.evaluate(() => it.node.isUp && it.subscriptions.every(({ next }) => next !== undefined)), 10);
say({ open: true });
const post = (channel, data) => fetch(`${url}/v1/channels/${channel}`, { method: "POST", body: JSON.stringify(data), headers: { "Content-Type": "application/json" } });
await post("down", "d".repeat(LARGE));
await page.evaluate((size) => void it.node.publish("up", "u".repeat(size)).then(({ offset }) => (it.sent = offset)), LARGE);
const began = performance.now();
let between = 0;
const done = () => page.evaluate(() => it.lengths.length > 0 && it.sent !== null);
while (!(await done()) && performance.now() - began < 24_000) {
  await post("small", 1);
  await new Promise((resolve) => setTimeout(resolve, 1000));
  between = await page.evaluate(() => (it.lengths.length === 0 ? it.small : 0)) || between;
}
const { opened, lengths, sent } = await page.evaluate(() => ({ opened: it.opened, lengths: it.lengths, sent: it.sent }));
say({ seconds: (performance.now() - began) / 1000, opened, lengths, sent, between, wrong });
await browser.close();
process.exit(0);
