// Watch a dashboard in Chromium for a test in another process. Says what it sees, one JSON object a line; does what it
// is told, one JSON object a line: {"publish": TEXT}, {"shot": NAME}, {"end": true}.
//   node watch.mjs URL PEER
import { createInterface } from "node:readline";
import { launch, openPage } from "./browser.mjs";

const [url, peer] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const browser = await launch();
const { page, wrong } = await openPage(browser, url);
await page.exposeFunction("saw", say);
await page.locator(`.link[data-peer="${peer}"]`).waitFor({ timeout: 20_000 });
await page.evaluate((peer) => {
  const card = document.querySelector(`.link[data-peer="${peer}"]`);
  let before = "";
  const look = () => {
    const now = {
      tone: card.dataset.tone,
      state: card.dataset.state,
      locked: document.querySelector("#message-body").matches(":disabled"),
      connection: document.querySelector("#connection").dataset.state,
      lost: !document.querySelector("#lost").hidden,
      drills: card.querySelectorAll(".hour rect.drill").length,
      bars: card.querySelectorAll(".hour rect:not(.unknown)").length,
      answer: document.querySelector("#message-answer").textContent,
      arrived: document.querySelector("#arrived li .mono")?.textContent ?? null,
      since: card.querySelector(".since").textContent,
      why: card.querySelector(".why").textContent.split(" · ")[0],
    };
    const text = JSON.stringify(now);
    if (text !== before) saw(now);
    before = text;
  };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
  look();
}, peer);

for await (const line of createInterface({ input: process.stdin })) {
  const told = JSON.parse(line);
  if (told.publish) {
    await page.fill("#message-channel", "orders");
    await page.fill("#message-body", told.publish);
    await page.click("#message button");
  }
  if (told.shot && process.env.LINKD_SHOTS) await page.screenshot({ path: `${process.env.LINKD_SHOTS}/${told.shot}.png`, fullPage: true });
  if (told.end) break;
}
say({ wrong, shift: await page.evaluate(() => globalThis.layoutShift) });
await browser.close();
