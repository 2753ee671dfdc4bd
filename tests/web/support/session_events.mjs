// An EventSource in Chromium that a cookie session lets in, over restarts of the daemon.
//   node session_events.mjs URL TOKEN
// Opens the session with the token, follows `orders`, and says what has come whenever that changes. Ends with its input.
import { launch, openPage } from "./browser.mjs";

const [url, token] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const browser = await launch();
const { page, wrong } = await openPage(browser, `${url}/healthz`);
const status = await page.evaluate(async (token) => {
  const answer = await fetch("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  const it = (globalThis.events = { seen: [], opened: 0 });
  const source = new EventSource("/v1/channels/orders");
  source.onopen = () => (it.opened += 1);
  source.onmessage = ({ data }) => it.seen.push(JSON.parse(data).data);
  return answer.status;
}, token);
let last = "";
const timer = setInterval(async () => {
  const now = JSON.stringify({ status, wrong, ...(await page.evaluate(() => globalThis.events)) });
  if (now !== last) say(JSON.parse((last = now)));
}, 50);
process.stdin.resume();
process.stdin.on("end", async () => {
  clearInterval(timer);
  await browser.close();
  process.exit(0);
});
