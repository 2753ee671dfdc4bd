// The well-known ways to a WebSocket, as people use them, and EventSource: each with the least code that reconnects.
// What each offers: `send(object)`, `seen` (objects that came), `open` (whether it can send now), `close()`.
import ReconnectingWebSocket from "reconnecting-websocket";
import { retry } from "rxjs";
import { webSocket } from "rxjs/webSocket";
import WebSocket from "ws";
import { Linkd } from "../../../linkd/api/dashboard/linkd.js";

/** @param {string} base as http://127.0.0.1:9480 */
const address = (base) => `${base.replace("http", "ws")}/ws?channel=orders`;

export function rxjs(base) {
  const it = { seen: [], open: false };
  const subject = webSocket({
    url: address(base),
    WebSocketCtor: WebSocket,
    openObserver: { next: () => (it.open = true) },
    closeObserver: { next: () => (it.open = false) },
  });
  const following = subject.pipe(retry({ delay: 200 })).subscribe((message) => it.seen.push(message));
  return Object.assign(it, { send: (message) => subject.next(message), close: () => following.unsubscribe() });
}

export function reconnecting(base) {
  const socket = new ReconnectingWebSocket(address(base), [], { WebSocket, minReconnectionDelay: 200, maxReconnectionDelay: 500 });
  const it = { seen: [], open: false };
  socket.addEventListener("open", () => (it.open = true));
  socket.addEventListener("close", () => (it.open = false));
  socket.addEventListener("message", ({ data }) => it.seen.push(JSON.parse(data)));
  return Object.assign(it, { send: (message) => socket.send(JSON.stringify(message)), close: () => socket.close() });
}

export function ws(base) {
  const it = { seen: [], open: false };
  let socket;
  let ended = false;
  const connect = () => {
    socket = new WebSocket(address(base));
    socket.on("open", () => (it.open = true));
    socket.on("message", (data) => it.seen.push(JSON.parse(String(data))));
    socket.on("error", () => {});
    socket.on("close", () => {
      it.open = false;
      if (!ended) setTimeout(connect, 200);
    });
  };
  connect();
  const close = () => {
    ended = true;
    socket.close();
  };
  return Object.assign(it, { send: (message) => socket.send(JSON.stringify(message)), close });
}

export function linkd(base) {
  const it = { seen: [], open: false };
  const node = new Linkd({ url: base, WebSocket, minDelay: 0.1, maxDelay: 0.5 });
  node.subscribe("orders", ({ type, data }) => it.seen.push({ type, data }));
  node.status.subscribe(({ state }) => (it.open = state === "up"));
  node.open();
  return Object.assign(it, { send: ({ type, data }) => void node.publish("orders", data, { type }), close: () => node.close() });
}

/** The browser's own WebSocket, in a page of the node; `page` as Playwright gives it. */
export async function browserSocket(page) {
  await page.evaluate(() => {
    const it = (globalThis.plain = { seen: [], open: false });
    const connect = () => {
      const socket = (it.socket = new WebSocket(`ws://${location.host}/ws?channel=orders`));
      socket.onopen = () => (it.open = true);
      socket.onmessage = ({ data }) => it.seen.push(JSON.parse(data));
      socket.onclose = () => {
        it.open = false;
        setTimeout(connect, 200);
      };
    };
    connect();
  });
  const it = { seen: [], open: false };
  const timer = setInterval(async () => Object.assign(it, await page.evaluate(() => ({ seen: plain.seen, open: plain.open }))), 50);
  const send = (message) => page.evaluate((text) => plain.socket.send(text), JSON.stringify(message));
  return Object.assign(it, { send, close: () => clearInterval(timer) });
}

/** The browser's EventSource. It only hears; it is said to be open once it is. */
export async function browserEvents(page) {
  await page.evaluate(() => {
    const it = (globalThis.events = { seen: [], open: false });
    const source = new EventSource("/v1/channels/orders");
    source.onopen = () => (it.open = true);
    source.onerror = () => (it.open = false);
    source.onmessage = ({ data }) => it.seen.push(JSON.parse(data));
  });
  const it = { seen: [], open: false };
  const timer = setInterval(async () => Object.assign(it, await page.evaluate(() => ({ seen: events.seen, open: events.open }))), 50);
  return Object.assign(it, { send: null, close: () => clearInterval(timer) });
}
