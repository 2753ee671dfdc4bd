// linkd.js with the platform's own WebSocket, where Node.js has one (from 22 on; in 20 behind a flag).
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";
import { StubNode } from "./support/stub.mjs";

const CLIENT = new URL("../../linkd/api/dashboard/linkd.js", import.meta.url).href;

test("Node.js' own WebSocket publishes and receives over a cut", async () => {
  const stub = await new StubNode({ key: "k".repeat(32) }).start();
  const program = `
    import { Linkd } from ${JSON.stringify(CLIENT)};
    const node = new Linkd({ url: ${JSON.stringify(stub.url)}, key: ${JSON.stringify(stub.key)}, minDelay: 0.01, maxDelay: 0.05 }).open();
    const got = [];
    const two = new Promise((resolve) => node.subscribe("orders", ({ data }) => got.push(data) === 2 && resolve()));
    await node.publish("orders", 1);
    await node.publish("orders", 2);
    await two;
    node.close();
    process.stdout.write(JSON.stringify(got));`;
  stub.dropAcks = 1;
  const flags = typeof globalThis.WebSocket === "function" ? [] : ["--experimental-websocket"];
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [...flags, "--no-warnings", "--input-type=module", "-e", program], { timeout: 10_000 });
    assert.equal(stdout, "[1,2]");
    assert.equal(stub.seen.upgrades.length, 2);
  } finally {
    await stub.stop();
  }
});
