// Send a notice for each message of `notices`: a worker that loses nothing, and does nothing twice.
//
//   LINKD_URL=http://127.0.0.1:9480 LINKD_KEY_FILE=/etc/linkd/worker.key node worker.mjs DIRECTORY
//
// Here "send" writes a file, with the message's place in its origin's log as the name. A mail or an HTTP call takes that
// place as its idempotency key.
import { readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import WebSocket from "ws"; // Node.js 22 has one of its own
import { connect } from "./linkd.mjs";

const [directory] = process.argv.slice(2);
if (!directory) {
  console.error("usage: worker.mjs DIRECTORY");
  process.exit(2);
}

/** Do the work for one message. It may be called again with the same message: after a crash before its ack. */
async function send({ origin, origin_offset, data }) {
  const file = join(directory, `${origin}-${origin_offset}.json`);
  await writeFile(`${file}.part`, JSON.stringify(data));
  await rename(`${file}.part`, file);
  console.log("sent", origin_offset, data.text);
}

const key = (await readFile(process.env.LINKD_KEY_FILE, "utf8")).trim();
const node = connect({ url: process.env.LINKD_URL, key, WebSocket });

// One message at a time, in order. It is done once the promise is fulfilled. A function that fails is called again with
// the same message, after 1 to 15 s. A message that can never be sent is put aside, so that it does not stop the others.
const worker = node.subscribe("notices", async (message) => {
  if (typeof message.data?.text !== "string") {
    const id = `${message.origin}-${message.origin_offset}`;
    await node.publish("notices.failed", message.data, { id, headers: { reason: "no text" } });
    console.log("put aside", message.origin_offset);
    return;
  }
  await send(message);
}, { consumer: "sender", from: "earliest" });

node.addEventListener("error", ({ detail }) => console.error(`${detail.code}: ${detail.message}`));
node.status.subscribe(({ state, reason }) => console.error(`node: ${state}${reason ? `, ${reason}` : ""}`));

// SIGTERM at any moment is safe: what was not done comes again. This only lets the message at hand be finished.
process.once("SIGTERM", () => {
  worker.unsubscribe();
  setTimeout(() => process.exit(0), 1000);
});
