// Every example of docs/clients/browser.md runs, against a stand-in for the node.
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";
import { EventSource } from "eventsource";
import WebSocket from "ws";
import { Linkd, connect } from "../../linkd/api/dashboard/linkd.js";
import { launch, openPage, withBrowser } from "./support/browser.mjs";
import { StubNode } from "./support/stub.mjs";
import { until } from "./support/until.mjs";

const KEY = "k".repeat(32);
const TEXT = await readFile(new URL("../../docs/clients/browser.md", import.meta.url), "utf8");
const BLOCKS = [...TEXT.matchAll(/^```(js|html)\n(.*?)^```$/gms)].map(([, language, code]) => ({ language, code }));
const CLIENT = new URL("../../linkd/api/dashboard/linkd.js", import.meta.url).href;

let stub;
let directory;
let shown;
let made;

before(async () => (directory = await mkdtemp(fileURLToPath(new URL("./.docs-", import.meta.url)))));
after(() => rm(directory, { recursive: true }));
beforeEach(async () => {
  stub = await new StubNode({ key: KEY }).start();
  [shown, made] = [[], []];
  process.env.LINKD_KEY = KEY;
});
afterEach(async () => {
  for (const each of made) each.close();
  await stub.stop();
});

/** Run the one block that contains `mark`, as a module of its own, and return what its `returned` names evaluate to. */
async function example(mark, given = {}, returned = []) {
  const found = BLOCKS.filter(({ code }) => code.includes(mark));
  assert.equal(found.length, 1, mark);
  found[0].run = true;
  const kept = (Class) => (options) => (made.push(new Class(options)), made.at(-1).open());
  const scope = { connect: kept(Linkd), Linkd, WebSocket, show: (...what) => shown.push(what), url: stub.url, key: KEY, ...given };
  const code = found[0].code.replaceAll("127.0.0.1:9480", `127.0.0.1:${stub.port}`).replace("./linkd.mjs", CLIENT);
  const imports = code.match(/^import .*$/gm) ?? [];
  const names = Object.keys(scope).filter((name) => !imports.some((line) => new RegExp(`\\b${name}\\b.* from`).test(line)));
  const text = `${imports.join("\n")}
    export default async ({ ${names} }) => { ${code.replaceAll(/^import .*$/gm, "")}
    return { ${returned} }; };`;
  const file = `${directory}/${BLOCKS.indexOf(found[0])}.mjs`;
  await writeFile(file, text);
  return (await import(file)).default(scope);
}

function client() {
  made.push(connect({ url: stub.url, key: KEY, WebSocket }));
  return made.at(-1);
}

test("a token from one's own server", async () => {
  const asked = [];
  const fetch = async (path) => (asked.push(path), new Response(JSON.stringify({ token: stub.token() })));
  const node = (await example("/my/linkd-token", { fetch, connect: (options) => new Linkd({ ...options, WebSocket }) }, ["node"])).node;
  made.push(node.open());
  await until(() => node.isUp);
  assert.deepEqual(asked, ["/my/linkd-token"]);
});

test("in Node.js", async () => {
  await example("process.env.LINKD_KEY");
  assert.deepEqual(stub.records.map(({ type, data }) => [type, data]), [["created", { total: 12 }]]);
});

test("a worker that is a named consumer", async () => {
  stub.publish("orders", "created", { total: 1 });
  await example('consumer: "billing"', { node: client(), bill: async (...what) => shown.push(what) });
  await until(() => stub.cursors.get("billing") === 2);
  assert.deepEqual(shown, [[{ total: 1 }, 1]]);
});

test("messages, and the end of a subscription", async () => {
  const node = client();
  stub.publish("orders.new", "created", 1);
  const late = { unsubscribe: null };
  const code = BLOCKS.find((each) => each.code.includes("// later"));
  code.code = code.code.replace("subscription.unsubscribe();", "later.unsubscribe = () => subscription.unsubscribe();");
  await example("// later", { node, later: late });
  await until(() => shown.length === 1);
  assert.deepEqual(shown, [["orders.new", "created", 1, 1, "edge-1"]]);
  late.unsubscribe();
  assert.equal(node._subscriptions.size, 0);
});

test("calls by type", async () => {
  const node = client();
  await example('node.off("created", created)', { node });
  assert.equal(node._byType.size, 0);
});

test("publishing, and what went wrong", async () => {
  const node = new Linkd({ url: stub.url, key: KEY, WebSocket });
  await example("order-4711", { node });
  assert.equal(shown[0][0], "down");
  made.push(node.open());
  await until(() => node.isUp);
  await example("order-4711", { node });
  await example("order-4711", { node });
  assert.equal(stub.records.length, 1);
});

test("links as they change", async () => {
  await example("node.links.subscribe");
  await until(() => made[0].isUp);
  stub.cut("hub");
  await until(() => shown.some(([peer, state, reason]) => peer === "hub" && state === "waiting" && reason === "ping-timeout"));
});

test("a subclass", async () => {
  made.push((await example("class Shop", {}, ["shop"])).shop);
  await until(() => shown.length === 1);
  stub.cutConnections();
  await until(() => shown.length === 3);
  assert.deepEqual(shown.map(([what]) => what), ["open", "lost", "open"]);
});

test("rxjs", async () => {
  stub.key = null;
  const { following } = await example("orders.next(", {}, ["following"]);
  await until(() => shown.length === 1);
  assert.equal(shown[0][0].data.total, 12);
  following.unsubscribe();
});

test("rxjs with tokens goes on where it stood", async () => {
  const { reading } = await example("fetchToken", {}, ["reading"]);
  await until(() => stub.seen.upgrades.length === 1);
  stub.publish("orders", "created", 1);
  await until(() => shown.length === 1);
  stub.cutConnections();
  stub.publish("orders", "created", 2);
  await until(() => shown.length === 2, 5000);
  assert.deepEqual(shown, [[1, 1], [2, 2]]);
  assert.equal(new Set(stub.seen.upgrades).size, 2, "a token for each connection");
  reading.unsubscribe();
});

test("EventSource", async () => {
  stub.key = null;
  stub.publish("orders", "created", 5);
  const { stream } = await example("new EventSource", { EventSource: class extends EventSource {
    constructor(path) {
      super(stub.url + path);
    }
  } }, ["stream"]);
  await until(() => shown.length === 1);
  assert.deepEqual([shown[0][0], shown[0][1].data], ["1", 5]);
  stream.close();
});

test("the page of docs/jobs/status-light.md", withBrowser, async () => {
  stub.key = null;
  const text = await readFile(new URL("../../docs/jobs/status-light.md", import.meta.url), "utf8");
  stub.pages.set("/light.html", /^```html\n(.*?)^```$/ms.exec(text)[1]);
  const browser = await launch();
  try {
    const { page, wrong } = await openPage(browser, `${stub.url}/light.html`);
    const light = (colour) => until(async () => (await page.textContent("#light")) === colour);
    await light("up");
    stub.cut("hub");
    await light("down");
    stub.restore("hub");
    await light("up");
    stub.mute = true;
    stub.cutConnections();
    await light("unknown");
    assert.deepEqual(wrong, []);
  } finally {
    await browser.close();
  }
});

test("a page", withBrowser, async () => {
  stub.key = null;
  const block = BLOCKS.find(({ language }) => language === "html");
  block.run = true;
  stub.pages.set("/orders.html", block.code);
  const browser = await launch();
  try {
    const { page, wrong } = await openPage(browser, `${stub.url}/orders.html`);
    await page.locator("#orders li").waitFor();
    assert.equal(await page.textContent("#orders li"), '{"total":12}');
    assert.equal(await page.textContent("#status"), "up");
    assert.deepEqual(wrong, []);
  } finally {
    await browser.close();
  }
});

test("no example was left out", () => {
  const left = BLOCKS.filter(({ run, language }) => !run && (language === "js" || withBrowser.skip === false));
  assert.deepEqual(left.map(({ code }) => code), []);
});
