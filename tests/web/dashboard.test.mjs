// The dashboard in a real Chromium, against a stand-in for the node.
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { launch, openPage, withBrowser } from "./support/browser.mjs";
import { StubNode } from "./support/stub.mjs";
import { until } from "./support/until.mjs";

const SHOTS = process.env.LINKD_SHOTS;
let browser;
let stub;

before(async () => {
  if (!withBrowser.skip) browser = await launch();
});
after(() => browser?.close());
beforeEach(async () => (stub = await new StubNode().start()));
afterEach(() => stub.stop());

const card = (page, peer) => page.locator(`.link[data-peer="${peer}"]`);
const live = (page) => page.locator('#connection[data-state="up"]').waitFor();

async function shot(page, name) {
  if (!SHOTS) return;
  mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
}

test("a cut turns the link red and locks the box, keeping what was typed; the return unlocks it", withBrowser, async () => {
  const { page, wrong, close } = await openPage(browser, stub.url);
  await live(page);
  assert.equal(await card(page, "hub").getAttribute("data-tone"), "good");
  await page.fill("#message-body", '{"total": 12}');
  const began = Date.now();
  stub.cut("hub");
  await page.locator('.link[data-peer="hub"][data-tone="bad"]').waitFor({ timeout: 2000 });
  const told = Date.now() - began;
  console.log(`the page told of a change after ${told} ms`);
  assert.ok(told < 1000, `told after ${told} ms`);
  assert.equal(await page.locator("#message-body").isDisabled(), true);
  assert.match(await page.textContent("#lock"), /hub is down/);
  assert.match(await page.textContent("#headline"), /hub is down/);
  assert.match(await card(page, "hub").locator(".why").textContent(), /ping-timeout: nothing heard for 7.0 s/);
  assert.equal(await card(page, "warehouse").getAttribute("data-tone"), "good");
  await until(async () => (await card(page, "hub").locator(".day rect").count()) === 1);
  stub.restore("hub");
  await page.locator('.link[data-peer="hub"][data-tone="good"]').waitFor({ timeout: 2000 });
  assert.equal(await page.locator("#message-body").isEnabled(), true);
  assert.equal(await page.inputValue("#message-body"), '{"total": 12}');
  await until(async () => (await page.locator("#events li").count()) === 2);
  assert.match(await page.locator("#events li").last().textContent(), /hub.*up → waiting · ping-timeout/);
  assert.deepEqual(wrong, []);
  await close();
});

test("a link at another instance is shown there, and as unknown where that is silent", withBrowser, async () => {
  const hub = stub.links.find(({ peer }) => peer === "hub");
  const before = { ...hub };
  Object.assign(hub, { instance: "hub-b" });
  stub.more = { instance: "hub-a" };
  const { page, close } = await openPage(browser, stub.url);
  await live(page);
  await until(async () => /at hub-b/.test(await card(page, "hub").locator(".facts").first().textContent()));
  assert.match(await page.title(), /edge-1 at hub-a/);
  Object.assign(hub, { state: "unknown", detail: "the instance hub-b has written nothing since 12:00" });
  await page.locator('.link[data-peer="hub"][data-tone="warn"]').waitFor({ timeout: 3000 });
  assert.match(await page.textContent("#headline"), /hub is unknown/);
  assert.match(await card(page, "hub").locator(".state").textContent(), /unknown/);
  assert.match(await card(page, "hub").locator(".why").textContent(), /hub-b has written nothing/);
  Object.assign(hub, before, { instance: null });
  stub.more = {};
  await page.locator('.link[data-peer="hub"][data-tone="good"]').waitFor({ timeout: 3000 });
  await close();
});

test("an outage of many attempts is two lines in the log, and says how many", withBrowser, async () => {
  const { page, close } = await openPage(browser, stub.url);
  await live(page);
  stub.cut("hub");
  for (let attempt = 0; attempt < 50; attempt += 1) {
    stub.change("hub", "connecting");
    stub.change("hub", "waiting", "unreachable", "no route");
  }
  await until(async () => /down for/.test(await card(page, "hub").locator(".since").textContent()));
  stub.restore("hub");
  await until(async () => /up.*50 attempts/.test(await page.locator("#events li").first().textContent()));
  assert.equal(await page.locator("#events li").count(), 2);
  await close();
});

test("a link that is not chosen does not lock the box", withBrowser, async () => {
  const { page, close } = await openPage(browser, stub.url);
  await live(page);
  await page.selectOption("#message-link", "warehouse");
  stub.cut("hub");
  await page.locator('.link[data-peer="hub"][data-tone="bad"]').waitFor();
  assert.equal(await page.locator("#message-body").isEnabled(), true);
  await page.selectOption("#message-link", "hub");
  assert.equal(await page.locator("#message-body").isDisabled(), true);
  await page.selectOption("#message-link", "warehouse");
  assert.equal(await page.locator("#message-body").isEnabled(), true);
  await close();
});

test("a message is published with its type, acknowledged, and shown as it arrives; markup stays text", withBrowser, async () => {
  const { page, wrong, close } = await openPage(browser, stub.url);
  await live(page);
  await page.fill("#message-channel", "orders");
  await page.fill("#message-type", "created");
  await page.fill("#message-body", '{"total": 12, "note": "<img src=x onerror=alert(1)>"}');
  await page.click("#message button");
  await page.locator("#arrived .mono").waitFor();
  assert.match(await page.textContent("#message-answer"), /on disk, offset 1/);
  assert.deepEqual(stub.records.map(({ type, channel, data }) => [type, channel, data.total]), [["created", "orders", 12]]);
  assert.match(await page.textContent("#arrived li"), /orders · created.*<img src=x onerror=alert\(1\)>/);
  await page.fill("#message-body", "just text");
  await page.press("#message-body", "Control+Enter");
  await until(() => stub.records.length === 2);
  assert.equal(stub.records[1].data, "just text");
  await page.fill("#message-pattern", "other.*");
  await page.press("#message-pattern", "Enter");
  await until(() => stub.seen.frames.some(({ type, data }) => type === "subscribe" && data.channel === "other.*"));
  stub.publish("orders", "created", 3);
  stub.publish("other.one", "created", 4);
  await until(async () => /other.one/.test(await page.textContent("#arrived li")));
  assert.equal(await page.locator("#arrived li").count(), 3);
  assert.deepEqual(wrong, []);
  await close();
});

test("it says when it has lost the node, locks the box, and goes on by itself", withBrowser, async () => {
  const { page, wrong, close } = await openPage(browser, stub.url);
  await live(page);
  await stub.stop();
  await page.locator("#lost").waitFor({ timeout: 3000 });
  assert.match(await page.textContent("#lost-text"), /No connection to the node/);
  assert.equal(await page.locator("#message-body").isDisabled(), true);
  assert.equal(await page.evaluate(() => document.body.dataset.stale), "true");
  await shot(page, "lost");
  stub.publish("orders", "created", "while you were away");
  await stub.start();
  // It may be back by itself before the button is hit: then the button has gone, and all is well.
  await page.click("#retry", { timeout: 2000 }).catch(() => {});
  await page.locator("#lost").waitFor({ state: "hidden" });
  await live(page);
  assert.equal(await page.locator("#message-body").isEnabled(), true);
  await until(async () => /while you were away/.test(await page.textContent("#arrived")));
  assert.deepEqual(wrong, []);
  await close();
});

test("the token of the address becomes a session and leaves the address; a used one asks for another", withBrowser, async () => {
  stub.key = "k".repeat(32);
  const token = stub.token();
  const first = await openPage(browser, `${stub.url}/?token=${token}`);
  await live(first.page);
  assert.equal(first.page.url(), `${stub.url}/`);
  await first.page.reload();
  await live(first.page);
  assert.deepEqual(first.wrong, []);
  await first.close();
  const { page, wrong, close } = await openPage(browser, `${stub.url}/?token=${token}`);
  await page.locator("#sign-in[open]").waitFor();
  await shot(page, "sign-in");
  const refused = stub.seen.refused;
  await page.waitForTimeout(2500);
  assert.equal(stub.seen.refused, refused, "nothing is asked without a session");
  await page.fill("#sign-in-token", token);
  await page.click("#sign-in button");
  await until(async () => /not valid/.test(await page.textContent("#sign-in-answer")));
  await page.fill("#sign-in-token", stub.token());
  await page.click("#sign-in button");
  await page.locator("#sign-in").waitFor({ state: "hidden" });
  await live(page);
  stub.sessions.clear();
  stub.cutConnections();
  await page.locator("#sign-in[open]").waitFor();
  assert.equal(await page.locator("#message-body").isDisabled(), true);
  assert.deepEqual(wrong, []);
  await close();
});

test("the page works below the path of a proxy", withBrowser, async () => {
  stub.key = "k".repeat(32);
  stub.below = "/linkd-api";
  const { page, wrong, close } = await openPage(browser, `${stub.url}/linkd-api/?token=${stub.token()}`);
  await live(page);
  assert.equal(page.url(), `${stub.url}/linkd-api/`);
  stub.cut("hub");
  await page.locator('.link[data-peer="hub"][data-tone="bad"]').waitFor({ timeout: 2000 });
  assert.deepEqual(wrong, []);
  await close();
});

test("what was not measured is grey and out of the percentage", withBrowser, async () => {
  stub.unknown = 86_400 - 7200;
  const { page, close } = await openPage(browser, stub.url);
  await live(page);
  const strip = card(page, "hub").locator(".day svg");
  await until(async () => (await strip.locator("rect.unknown").count()) === 1);
  const width = Number(await strip.locator("rect.unknown").getAttribute("width"));
  assert.ok(Math.abs(width - 10_000 * (22 / 24)) < 20, `${width}`);
  stub.cut("hub");
  await until(async () => / up 99\.\d+ %, 1 outage$/.test(await strip.getAttribute("aria-label")));
  await shot(page, "half-measured");
  await close();
});

test("24 hours with 500 outages draw in less than a second; hover and keys tell of each", withBrowser, async () => {
  stub.history(500);
  const { page, wrong, close } = await openPage(browser, stub.url);
  await live(page);
  const took = await page.evaluate(() => performance.getEntriesByName("linkd-history").map(({ duration }) => duration));
  const shown = await page.evaluate(() => performance.now());
  console.log(`drew 500 outages in ${took[0].toFixed(1)} ms; all there ${shown.toFixed(0)} ms after the page was asked for`);
  assert.ok(took[0] < 1000);
  assert.equal(await page.locator(".day rect").count(), 500);
  const strip = card(page, "hub").locator(".day svg");
  const bar = await strip.locator("rect").nth(100).boundingBox();
  await page.mouse.move(bar.x + bar.width / 2, bar.y + 5);
  assert.match(await page.textContent("#hint"), /· (ping-timeout|silence|closed|unreachable|refused)down for .*noticed after .*attempt/);
  await page.mouse.move(5, 5);
  assert.equal(await page.locator("#hint").isVisible(), false);
  await strip.focus();
  await page.keyboard.press("End");
  const last = await page.textContent("#hint");
  await page.keyboard.press("ArrowLeft");
  assert.notEqual(await page.textContent("#hint"), last);
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#hint").isVisible(), false);
  assert.match(await strip.getAttribute("aria-label"), /^24 hours: up \d\d\.\d+ %, \d+ outages$/);
  assert.deepEqual(wrong, []);
  await close();
});

test("the plots move, and nothing on the page jumps while links fall and return", withBrowser, async () => {
  const { page, close } = await openPage(browser, stub.url);
  await live(page);
  await page.waitForTimeout(1500);
  const painted = () => page.evaluate(() => document.querySelector(".plot canvas").toDataURL());
  const before = await painted();
  await page.evaluate(() => (globalThis.layoutShift = 0));
  for (const act of ["cut", "restore", "cut", "restore"]) {
    stub[act]("hub");
    await page.waitForTimeout(700);
  }
  assert.notEqual(await painted(), before);
  const shift = await page.evaluate(() => globalThis.layoutShift);
  assert.ok(shift < 0.02, `layout shift ${shift}`);
  await close();
});

test("light, dark and narrow: legible, nothing wider than the window, the choice of theme stays", withBrowser, async () => {
  stub.history(500);
  stub.cut("warehouse");
  for (const [name, options] of Object.entries({
    light: { colorScheme: "light" },
    dark: { colorScheme: "dark" },
    narrow: { colorScheme: "light", viewport: { width: 360, height: 740 } },
  })) {
    const { page, wrong, close } = await openPage(browser, stub.url, options);
    await live(page);
    await page.waitForTimeout(2500);
    const [wide, ink, ground] = await page.evaluate(() => {
      const style = getComputedStyle(document.body);
      return [document.documentElement.scrollWidth - innerWidth, style.color, style.backgroundColor];
    });
    assert.ok(wide <= 0, `${name}: ${wide} px too wide`);
    assert.ok(contrast(ink, ground) > 7, `${name}: ${ink} on ${ground}`);
    await shot(page, name);
    assert.deepEqual(wrong, []);
    if (name === "light") {
      await page.click("#theme");
      await page.click("#theme");
      assert.equal(await page.textContent("#theme"), "Theme: dark");
      await page.reload();
      assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
    }
    await close();
  }
});

test("every control is reached by the Tab key alone, in reading order", withBrowser, async () => {
  const { page, close } = await openPage(browser, stub.url);
  await live(page);
  const order = [];
  for (let press = 0; press < 20; press += 1) {
    await page.keyboard.press("Tab");
    order.push(await page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("aria-label") || document.activeElement.className));
  }
  const wanted = ["skip", "span", "theme", "24 hours: up 100 %, 0 outages", "events", "message-link", "message-channel", "message-type", "message-body", "message-pattern", "arrived"];
  assert.deepEqual(order.filter((each) => wanted.includes(each)).filter((each, at, all) => all.indexOf(each) === at), wanted);
  await close();
});

test("forty links: an overview by state, cards of those that are down, and of those that are chosen", withBrowser, async () => {
  const model = stub.links[0];
  stub.links = Array.from({ length: 40 }, (_, index) => ({ ...model, peer: `edge-${index}`, required: index === 30 }));
  stub.cut("edge-7");
  stub.cut("edge-30");
  const { page, wrong, close } = await openPage(browser, stub.url);
  await live(page);
  assert.equal(await page.locator("#index a").count(), 40);
  assert.deepEqual(await page.locator('#index a[data-tone="bad"] b').allTextContents(), ["edge-30", "edge-7"]);
  assert.match(await page.locator("#index a").first().textContent(), /edge-30/);
  assert.equal(await page.textContent("#index-count"), "38 up, 2 down");
  const shown = () => page.locator(".link:visible h2").evaluateAll((all) => all.map((each) => each.firstChild.textContent));
  assert.deepEqual(await shown(), ["edge-30", "edge-7"]);
  await shot(page, "forty");
  await page.fill("#filter", "33");
  assert.deepEqual(await page.locator("#index a b").allTextContents(), ["edge-33"]);
  await page.click("#index a >> text=edge-33");
  await until(() => page.evaluate(() => document.querySelector("#link-edge-33").getBoundingClientRect().top < innerHeight));
  assert.deepEqual(await shown(), ["edge-30", "edge-7", "edge-33"]);
  stub.restore("edge-7");
  await until(async () => (await shown()).join() === "edge-30,edge-33");
  stub.cut("edge-12");
  await until(async () => (await shown()).join() === "edge-30,edge-12,edge-33");
  assert.deepEqual(wrong, []);
  await close();
});

test("five thousand links and consumers leave the page usable", withBrowser, async () => {
  const model = stub.links[0];
  stub.links = Array.from({ length: 5000 }, (_, index) => ({ ...model, peer: `edge-${index}` }));
  stub.more = { consumers: Array.from({ length: 5000 }, (_, index) => ({ owner: "shop", name: `c${index}`, next: 1, lag_records: index })) };
  const { page, wrong, close } = await openPage(browser, stub.url);
  await live(page);
  assert.equal(await page.locator("#index a").count(), 400);
  assert.match(await page.textContent("#index-count"), /5000 up, 0 down; 4,600 more/);
  assert.equal(await page.locator("#consumers-list tr").count(), 50);
  assert.match(await page.locator("#consumers-list tr").first().textContent(), /shop\/c4999/);
  await page.fill("#filter", "edge-4999");
  assert.deepEqual(await page.locator("#index a b").allTextContents(), ["edge-4999"]);
  assert.deepEqual(wrong, []);
  await close();
});

test("the plots begin with what the daemon has kept, and show the limit; an hour at a click", withBrowser, async () => {
  const blank = await inkOf(stub);
  stub.hour = 55;
  const filled = await inkOf(stub);
  assert.ok(filled.short > 2 * blank.short, `${blank.short} and ${filled.short} pixels`);
  assert.ok(filled.limit > 50, `${filled.limit} pixels of the limit`);
  assert.equal(filled.button, "Plots: 1 hour");
  assert.notEqual(filled.long, filled.short);
});

/** How much is painted on the plot of silence, with five minutes and with an hour. */
async function inkOf(node) {
  const { page, wrong, close } = await openPage(browser, node.url);
  await live(page);
  await page.waitForTimeout(1500);
  const count = () => page.evaluate(() => {
    const canvas = document.querySelectorAll(".plot canvas")[1];
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let [line, limit] = [0, 0];
    for (let at = 0; at < data.length; at += 4) {
      if (data[at + 3] < 128) continue;
      if (data[at + 2] > data[at] + 60) line += 1;
      if (data[at] > data[at + 2] + 90) limit += 1;
    }
    return [line, limit];
  });
  const [short, limit] = await count();
  await page.click("#span");
  const [long] = await count();
  const button = await page.textContent("#span");
  assert.deepEqual(wrong.filter((each) => !each.includes("willReadFrequently")), []);
  await close();
  return { short, long, limit, button };
}

test("what needs an operator stands above the links: warnings, second hosts, wrong clocks; consumers below", withBrowser, async () => {
  stub.more = {
    warnings: ["listen.certificate: it ends in 3 d"],
    refused: [
      { claimed: "hub", address: "192.0.2.9:4", reason: "duplicate", detail: "two hosts use the name hub", count: 12, seconds_ago: 40 },
      { claimed: "edge-9", address: "198.51.100.7:4", reason: "rejected", detail: "no peer named 'edge-9' is configured here", count: 1, seconds_ago: 3 },
    ],
  };
  stub.links[1].clock_skew_seconds = -172_800;
  stub.links[1].certificate_expires_seconds = 86_400;
  const { page, wrong, close } = await openPage(browser, stub.url);
  await live(page);
  assert.deepEqual(await page.locator("#warnings li").allTextContents(), [
    "listen.certificate: it ends in 3 d",
    "The clock of warehouse is 2 d 0 h behind this host's",
    "Refused hub at 192.0.2.9:4, 40 s ago, 12 times: two hosts use the name hub",
    "Refused edge-9 at 198.51.100.7:4, 3 s ago: no peer named 'edge-9' is configured here",
  ]);
  assert.deepEqual(await page.locator("#warnings li").evaluateAll((all) => all.map(({ dataset }) => dataset.tone)), ["bad", "bad", "bad", "quiet"]);
  assert.equal(await card(page, "warehouse").locator(".certificate").getAttribute("data-tone"), "bad");
  assert.deepEqual(await page.locator("#consumers-list tr").first().locator("th, td").allTextContents(), ["shop/reports", "1,840", "1", "1"]);
  await shot(page, "warnings");
  assert.deepEqual(wrong, []);
  await close();
});

test("events from before the page was opened are there, and later ones are asked for alone", withBrowser, async () => {
  stub.history(40);
  const { page, close } = await openPage(browser, stub.url);
  const asked = [];
  page.on("request", (request) => asked.push(new URL(request.url())));
  await live(page);
  const before = await page.locator("#events li").count();
  assert.ok(before >= 40, `${before}`);
  stub.cut("hub");
  await until(async () => (await page.locator("#events li").count()) === before + 1);
  assert.match(await page.locator("#events li").first().textContent(), /hub.*up → waiting/);
  const events = asked.filter(({ pathname }) => pathname === "/v1/events").map(({ searchParams }) => Number(searchParams.get("after")));
  assert.deepEqual(events.slice(1).filter((after) => after < 80), [], `${events}`);
  await close();
});

/** The ratio of WCAG 2 section 1.4.3. @param {string} one @param {string} other as rgb(…) */
function contrast(one, other) {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [bright, dark] = [light(one), light(other)].sort((a, b) => b - a);
  return (bright + 0.05) / (dark + 0.05);
}
