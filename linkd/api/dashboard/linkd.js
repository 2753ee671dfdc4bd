// @ts-check
/**
 * linkd.js: the browser's and Node.js' way to a linkd node, in one file without dependencies.
 *
 *     import { connect } from "/linkd.js";
 *     const node = connect({ url: "http://127.0.0.1:9480", key: "…" });
 *     node.subscribe("orders", (record) => show(record.data));
 *     await node.publish("orders", { total: 12 });
 *
 * It connects by itself and for ever: a fresh single-use token for every connection, capped exponential
 * backoff with full jitter, a heartbeat in both directions. After a reconnect the subscriptions go on where
 * they stood, and what was being published is sent once more under its id, which the node stores once.
 *
 * All durations are seconds.
 */

/**
 * One message as it arrives. `offset` is 0 where the channel is volatile. `data` is what its JSON says, a string
 * where it was published as text, a Uint8Array where it is neither. `headers` are the short strings that were
 * published with it. Where the node can't read the record, `unreadable` is true and `data` is its whole encoding.
 * @typedef {{channel: string, type: string | null, data: any, offset: number, origin: string | null,
 *   headers: Record<string, string>, time?: string, id?: string | null, unreadable?: boolean}} Message
 */
/** @typedef {"stopped" | "connecting" | "up" | "waiting" | "rejected"} State */
/**
 * The connection to the node. `retrySeconds` is set while `waiting` or `rejected`; `reason` says why it is not up.
 * @typedef {{state: State, attempts: number, retrySeconds: number | null, reason: string | null}} Status
 */
/**
 * @typedef {object} Options
 * @property {string | URL} [url] The node, `http://HOST:PORT`; by default where the page came from.
 * @property {string} [key] A key of `[[api.key]]`: a token is asked for with it before every connect.
 * @property {() => string | null | Promise<string | null>} [token] Or: who brings a fresh token for every connect.
 *   With neither, none is sent: the cookie session goes along, or the node asks for no key.
 * @property {any} [WebSocket] The class to use where the platform has none, as that of `ws` in Node.js 20.
 * @property {typeof fetch} [fetch] Likewise for the token.
 * @property {number} [pingInterval] A ping goes out this often: 5.
 * @property {number} [pingTimeout] With nothing heard for `pingInterval + pingTimeout`, the connection is dropped: 2.
 * @property {number} [connectTimeout] For token, connect and upgrade together: 10.
 * @property {number} [minDelay] The backoff starts here: 0.5.
 * @property {number} [maxDelay] And never exceeds this: 15.
 * @property {number} [stableAfter] Up for so long, the backoff starts anew: 5.
 * @property {number} [maxAttempts] Give up after so many failures in a row; by default never.
 * @property {"wait" | "reject"} [whenDown] What `publish` does while the connection is down: "wait".
 * @property {number} [maxPending] So many publishes may wait for their ack: 10000.
 * @property {boolean} [status] Hear of every change of a link; see `links`.
 * @property {boolean} [presence] Hear who joins and leaves, as messages of type `joined` and `left` to `on`.
 * @property {(frame: any) => string} [encode] Default JSON.stringify.
 * @property {(text: string) => any} [decode] Default JSON.parse.
 * @property {() => number} [random] For tests: [0, 1).
 */

/** So many publishes are under way at once; the others wait here, not in buffers on the way. */
const WINDOW = 256;
/** So many characters of publishes are on their way: less than the daemon takes, whatever its settings. */
const WINDOW_CHARACTERS = 262_144;
/** Offsets that a subscription remembers where patterns overlap in part. */
const REMEMBERED = 10_000;
const RESERVED = ["ping", "pong", "subscribe", "unsubscribe", "ack", "error", "status", "joined", "left", "gap"];
const DEFAULTS = {
  pingInterval: 5,
  pingTimeout: 2,
  connectTimeout: 10,
  minDelay: 0.5,
  maxDelay: 15,
  stableAfter: 5,
  maxAttempts: Infinity,
  whenDown: "wait",
  maxPending: 10_000,
  encode: JSON.stringify,
  decode: JSON.parse,
  random: Math.random,
};

/** Refusals of a publish that pass by themselves. */
const LATER = ["unavailable", "too-many"];

/** @type {Status} */
const STOPPED = { state: "stopped", attempts: 0, retrySeconds: null, reason: null };

/** What the node refused, or what could not be done. `code` is one word, as `log-full`, `down`, `unsettled`. */
export class LinkdError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {string | null} [id] The id of the publish concerned.
   */
  constructor(code, message, id = null) {
    super(message);
    this.name = "LinkdError";
    this.code = code;
    this.id = id;
  }
}

/**
 * A value that changes, to be watched: whoever subscribes gets the present one at once.
 * @template T
 */
export class Observable {
  /** @param {T} value */
  constructor(value) {
    this.value = value;
    /** @type {Set<{next?: (value: T) => void}>} */
    this._observers = new Set();
  }

  /**
   * @param {((value: T) => void) | {next?: (value: T) => void}} observer
   * @returns {{unsubscribe: () => void}}
   */
  subscribe(observer) {
    const entry = { next: typeof observer === "function" ? observer : observer.next?.bind(observer) };
    this._observers.add(entry);
    entry.next?.(this.value);
    return { unsubscribe: () => void this._observers.delete(entry) };
  }

  /** @param {T} value */
  _set(value) {
    this.value = value;
    for (const each of [...this._observers]) each.next?.(value);
  }

  /** What RxJS' `from` looks for. */
  ["@@observable"]() {
    return this;
  }
}

/** One pattern that is followed. Made by `Linkd.subscribe`. */
export class Subscription {
  /**
   * @param {Linkd} node
   * @param {string} pattern
   * @param {((message: Message) => void) | undefined} call
   * @param {number | "earliest" | undefined} from
   */
  constructor(node, pattern, call, from) {
    this.node = node;
    this.pattern = pattern;
    this.call = call;
    /** Everything below was seen; undefined until something was. @type {number | undefined} */
    this.next = typeof from === "number" ? from : undefined;
    this._earliest = from === "earliest";
    /** Offsets at or above `next` that were seen by way of another subscription. @type {Set<number>} */
    this._seen = new Set();
  }

  /** Nothing more comes. */
  unsubscribe() {
    this.node._forget(this);
  }

  /** Where the node is to begin. @returns {number | "earliest" | undefined} */
  get _start() {
    return this.next ?? (this._earliest ? "earliest" : undefined);
  }

  /**
   * Tell whether `message` is new for this subscription, and remember that it was seen.
   * @param {Message} message
   * @param {boolean} alone Only this subscription's own stream can have brought it, in order.
   */
  _wants(message, alone) {
    const { offset, channel } = message;
    if (!covers(this.pattern, channel)) return false;
    if (!offset) return true;
    if ((this.next !== undefined && offset < this.next) || this._seen.has(offset)) return false;
    if (alone) {
      this.next = offset + 1;
      for (const each of this._seen) if (each <= offset) this._seen.delete(each);
    } else {
      this._seen.add(offset);
      if (this._seen.size > REMEMBERED) for (const oldest of this._seen) return this._seen.delete(oldest);
    }
    return true;
  }
}

/**
 * A lasting connection to one node. Subclass it for the hooks `onOpen`, `onMessage`, `onClose` and `onError`.
 * Fires the events `status`, `link`, `open`, `close`, `gap` and `error`, each a CustomEvent with its value in `detail`.
 */
export class Linkd extends EventTarget {
  /** @param {Options} [options] */
  constructor(options = {}) {
    super();
    const set = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    /** @type {any} */
    this.options = { ...DEFAULTS, ...set };
    const here = /** @type {any} */ (globalThis).location?.href;
    this.url = new URL(options.url ?? here);
    this.WebSocket = options.WebSocket ?? /** @type {any} */ (globalThis).WebSocket;
    if (!this.WebSocket) throw new LinkdError("no-websocket", "this platform has no WebSocket: pass one, as {WebSocket}");
    /** @type {Observable<Status>} */
    this.status = new Observable(STOPPED);
    /** What `status: true` told of each link, by peer. @type {Observable<Map<string, any>>} */
    this.links = new Observable(new Map());
    /** @type {Map<string, Set<(data: any, message: Message) => void>>} */
    this._byType = new Map();
    /** @type {Set<Subscription>} */
    this._subscriptions = new Set();
    /** What the node was asked to follow on this connection: the patterns that no other covers, with the frame's id. */
    this._followed = new Map();
    /** `text` is the frame as it is sent. @type {Map<string, {text: any, whenDown: string, timer: any,
     *   resolve: (ack: {id: string, offset: number}) => void, reject: (error: LinkdError) => void}>} */
    this._pending = new Map();
    /** Ids of those that were not yet sent on this connection, oldest first. @type {string[]} */
    this._unsent = [];
    /** Those that were, and are not answered: id and characters. @type {Map<string, number>} */
    this._underWay = new Map();
    /** The characters of all of them. */
    this._characters = 0;
    /** @type {any} */
    this._socket = null;
    this._generation = 0;
    this._heard = 0;
    this._failures = 0;
    /** @type {Record<string, any>} */
    this._timers = {};
    /** @type {AbortController | null} */
    this._attempt = null;
    this._serial = 0;
    this._wake = () => this.kick();
  }

  // Hooks for subclasses: by default they do nothing.

  /** The connection is up; subscriptions and unsettled publishes are about to be sent. */
  onOpen() {}

  /**
   * A message came, before any subscription sees it. Return false to keep it from them.
   * @param {Message} _message
   * @returns {boolean | void}
   */
  onMessage(_message) {}

  /** The connection is gone. @param {{code: number | null, reason: string}} _why */
  onClose(_why) {}

  /** Something was refused or failed. @param {LinkdError} _error */
  onError(_error) {}

  /** Connect, and stay connected until `close`. Calling it again changes nothing. */
  open() {
    if (this.status.value.state !== "stopped") return this;
    this._failures = 0;
    /** @type {any} */ (globalThis).addEventListener?.("online", this._wake);
    this._connect();
    return this;
  }

  /** Disconnect and stay so. What still waits for its ack is rejected as `unsettled`. */
  close() {
    /** @type {any} */ (globalThis).removeEventListener?.("online", this._wake);
    this._drop(1000, "closed by us");
    this._rejectPending(() => true, "unsettled", "closed before the node had answered");
    this._enter("stopped", null, null);
  }

  /** Try again at once if waiting to. */
  kick() {
    const { state } = this.status.value;
    if (state === "waiting" || state === "rejected") this._connect();
  }

  /**
   * Have `call(data, message)` called for each message of `type`. Added twice, it is called once.
   * @param {string} type
   * @param {(data: any, message: Message) => void} call
   * @returns {() => void} what takes it off again
   */
  on(type, call) {
    const calls = this._byType.get(type) ?? new Set();
    this._byType.set(type, calls.add(call));
    return () => this.off(type, call);
  }

  /**
   * @param {string} type
   * @param {(data: any, message: Message) => void} [call] By default all of that type.
   */
  off(type, call) {
    const calls = this._byType.get(type);
    if (call) calls?.delete(call);
    if (!call || calls?.size === 0) this._byType.delete(type);
  }

  /**
   * Follow a channel or a pattern, across reconnects, each message once.
   * @param {string} pattern
   * @param {(message: Message) => void} [call] Beside the calls by type.
   * @param {{from?: number | "earliest"}} [options] The first offset wanted; by default what comes from now on.
   */
  subscribe(pattern, call, { from } = {}) {
    const subscription = new Subscription(this, pattern, call, from);
    this._subscriptions.add(subscription);
    this._follow(subscription);
    return subscription;
  }

  /**
   * Publish one message. Resolves once it is on the node's disk (at once, with offset 0, on a volatile channel).
   * @param {string} channel
   * @param {any} data
   * @param {{type?: string, id?: string, headers?: Record<string, string>, whenDown?: "wait" | "reject",
   *   timeout?: number}} [options] The same `id` again, within the node's `id_window`, is stored once. `headers` are
   *   at most 16 short strings by names of letters, digits and `-`, which come back in lower case.
   * @returns {Promise<{id: string, offset: number}>} rejected with a LinkdError: what the node refused (`log-full`,
   *   `channel-refused`, …), `down` (not sent), `unsettled` or `timeout` (the node may have it: publish it again with
   *   the error's `id` to settle it), `too-many` (`maxPending`).
   */
  publish(channel, data, { type = "message", id = this._id(), headers, whenDown = this.options.whenDown, timeout } = {}) {
    const refused = this._refusal(type, id, whenDown, headers);
    if (refused) return Promise.reject(refused);
    return new Promise((resolve, reject) => {
      const text = this.options.encode({ type, data: data ?? null, channel, id, headers }); // first: what it refuses is not kept
      const late = () => this._settle(id, new LinkdError("timeout", `no answer in ${timeout} s`, id));
      const timer = timeout === undefined ? null : setTimeout(late, timeout * 1000);
      const entry = { text, whenDown, timer, resolve, reject };
      this._pending.set(id, entry);
      this._unsent.push(id);
      this._sendPending();
    });
  }

  /** Send any frame as it is, unless the connection is down. @param {any} frame @returns {boolean} whether it was sent */
  send(frame) {
    if (!this.isUp) return false;
    this._socket.send(this.options.encode(frame));
    return true;
  }

  /** Whether the connection to the node is up. */
  get isUp() {
    return this.status.value.state === "up";
  }

  // From here on: how it is done.

  /** @param {string} type @param {string} id @param {string} whenDown @param {Record<string, string>} [headers] */
  _refusal(type, id, whenDown, headers = {}) {
    if (!Object.values(headers).every((each) => typeof each === "string")) {
      return new LinkdError("malformed", "expected strings as headers", id);
    }
    if (RESERVED.includes(type)) return new LinkdError("bad-type", `${type} is a reserved type`, id);
    if (this._pending.has(id)) return new LinkdError("bad-id", `${id} is being published`, id);
    if (this._pending.size >= this.options.maxPending) return new LinkdError("too-many", "too many publishes wait", id);
    if (!this.isUp && (whenDown === "reject" || this.status.value.state === "stopped")) {
      return new LinkdError("down", "the connection to the node is down", id);
    }
    return null;
  }

  async _connect() {
    this._drop(1000, "anew");
    const generation = this._generation;
    const attempt = (this._attempt = new AbortController());
    this._enter("connecting", this.status.value.reason, null);
    this._timers.attempt = setTimeout(
      () => this._failed(generation, new LinkdError("timeout", "the node did not answer in time")),
      this.options.connectTimeout * 1000,
    );
    try {
      const token = await this._token(attempt.signal);
      if (generation !== this._generation) return;
      this._dial(generation, token);
    } catch (error) {
      this._failed(generation, error instanceof LinkdError ? error : new LinkdError("unreachable", String(error)));
    }
  }

  /**
   * Bring a token: three tries, so that one lost request costs no backoff.
   * @param {AbortSignal} signal
   * @returns {Promise<string | null>}
   */
  async _token(signal) {
    const { token, key } = this.options;
    if (!token && !key) return null;
    for (let tries = 1; ; tries += 1) {
      try {
        return await (token ? token() : this._fetchToken(signal));
      } catch (error) {
        const refused = error instanceof LinkdError && error.code === "rejected";
        if (refused || tries === 3 || signal.aborted) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200 * tries));
      }
    }
  }

  /** @param {AbortSignal} signal @returns {Promise<string>} */
  async _fetchToken(signal) {
    const ask = this.options.fetch ?? globalThis.fetch;
    const headers = { Authorization: `Bearer ${this.options.key}` };
    const answer = await ask(new URL("/v1/token", this.url), { method: "POST", headers, signal });
    if (answer.status === 401 || answer.status === 403) {
      throw new LinkdError("rejected", `the node refused the key (${answer.status})`);
    }
    if (!answer.ok) throw new LinkdError("unreachable", `no token: status ${answer.status}`);
    return (await answer.json()).token;
  }

  /** @param {number} generation @param {string | null} token */
  _dial(generation, token) {
    const url = new URL("/ws", this.url);
    url.protocol = url.protocol === "https:" || url.protocol === "wss:" ? "wss:" : "ws:";
    url.hash = "";
    const { status, presence } = this.options;
    const query = { ws_token: token, envelope: "1", status: status && "1", presence: presence && "1" };
    for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value);
    const socket = (this._socket = new this.WebSocket(url.href));
    const mine = (/** @type {(event: any) => void} */ call) => (/** @type {any} */ event) => {
      if (generation === this._generation) call(event);
    };
    socket.onopen = mine(() => this._opened());
    socket.onmessage = mine((event) => this._received(event.data));
    // A browser says nothing more with an error than that one occurred; the close after it carries the rest.
    socket.onerror = mine(() => {});
    socket.onclose = mine((event) =>
      this._failed(generation, new LinkdError("closed", event.reason || `closed (${event.code})`), event.code),
    );
  }

  _opened() {
    clearTimeout(this._timers.attempt);
    this._heard = now();
    this._timers.stable = setTimeout(() => (this._failures = 0), this.options.stableAfter * 1000);
    this._timers.ping = setInterval(() => this.send({ type: "ping" }), this.options.pingInterval * 1000);
    this._watch(this._generation);
    this._enter("up", null, null);
    this._guarded(() => this.onOpen());
    this._fire("open", null);
    this._followed.clear();
    this._follow();
    this._unsent = [...this._pending.keys()];
    this._underWay.clear();
    this._characters = 0;
    this._sendPending();
  }

  /**
   * Drop the connection once nothing was heard for `pingInterval + pingTimeout`.
   * @param {number} generation
   * @param {number} [grace] The silence that is forgiven on top.
   */
  _watch(generation, grace = 0) {
    const { pingInterval, pingTimeout } = this.options;
    const due = this._heard + pingInterval + pingTimeout + grace;
    const look = () => {
      const silence = now() - this._heard;
      if (silence < pingInterval + pingTimeout) this._watch(generation);
      // Woken late (a sleeping laptop, a throttled tab): read first, then judge.
      else if (grace === 0 && now() > due + 1) this._watch(generation, silence - pingInterval - pingTimeout + 0.5);
      else this._failed(generation, new LinkdError("silence", `nothing heard for ${silence.toFixed(1)} s`));
    };
    this._timers.silence = setTimeout(look, Math.max(0, due - now()) * 1000);
  }

  /** @param {any} text */
  _received(text) {
    this._heard = now();
    let frame;
    try {
      frame = this.options.decode(text);
    } catch (error) {
      this._error(new LinkdError("undecodable", `a frame could not be decoded: ${error}`));
      return;
    }
    if (frame === null || typeof frame !== "object") return;
    if (typeof frame.channel === "string") this._message(frame);
    else this._control(frame.type, frame.data ?? {});
  }

  /** @param {string} type @param {any} data */
  _control(type, data) {
    if (type === "ping") this.send({ type: "pong" });
    else if (type === "ack") this._acked(data);
    else if (type === "error") this._refused(data);
    else if (type === "status") {
      this.links._set(new Map(this.links.value).set(data.peer, data));
      this._fire("link", data);
    } else if (type === "gap") this._fire("gap", data);
    else if (type === "joined" || type === "left") {
      this._byType.get(type)?.forEach((call) => this._guarded(() => call(data, data)));
    }
  }

  /** @param {any} data */
  _acked(data) {
    const root = this._root(data.id);
    if (root === undefined) return this._settle(data.id, null, data.offset ?? 0);
    // Where "from now on" began: should the connection fall before the first message, it goes on from there.
    if (data.offset > 0) for (const each of this._members(root)) each.next ??= data.offset;
  }

  /** @param {any} data */
  _refused(data) {
    const error = new LinkdError(data.error ?? "error", data.message ?? "refused", data.id ?? null);
    const root = this._root(error.id);
    if (root !== undefined) {
      this._followed.delete(root);
      for (const each of [...this._subscriptions]) if (each.pattern === root) this._subscriptions.delete(each);
      this._follow();
    }
    const entry = this._pending.get(data.id);
    if (entry?.whenDown === "wait" && LATER.includes(error.code)) this._sendLater(data.id);
    else if (entry) this._settle(data.id, error);
    else this._error(error);
  }

  /** @param {any} frame */
  _message(frame) {
    const { type = null, origin = null, headers = {}, offset, text, base64, ...rest } = frame;
    const data = "data" in frame ? frame.data : (text ?? (base64 === undefined ? null : bytes(base64)));
    /** @type {Message} */
    const message = { ...rest, type, origin, headers, offset: offset ?? 0, data };
    let keep = true;
    this._guarded(() => (keep = this.onMessage(message) !== false));
    if (!keep) return;
    const alone = [...this._followed.keys()].filter((root) => covers(root, message.channel)).length < 2;
    const takers = [...this._subscriptions].filter((each) => each._wants(message, alone));
    if (takers.length === 0) return;
    for (const each of takers) this._guarded(() => each.call?.(message));
    const calls = message.type === null ? undefined : this._byType.get(message.type);
    for (const call of [...(calls ?? [])]) this._guarded(() => call(message.data, message));
  }

  /**
   * Have the node follow what is subscribed, each message over one stream only: a pattern that another covers is left out.
   * @param {Subscription | null} [added] The one that is new: where it starts at an offset, its stream begins anew there.
   */
  _follow(added = null) {
    if (!this.isUp) return;
    const patterns = [...new Set([...this._subscriptions].map(({ pattern }) => pattern))];
    const roots = patterns.filter((each) => !patterns.some((other) => other !== each && covers(other, each)));
    for (const channel of roots) {
      const members = this._members(channel);
      if (this._followed.has(channel) && !(added && members.includes(added) && added._start !== undefined)) continue;
      const starts = members.flatMap(({ _start }) => (_start === undefined ? [] : [_start]));
      const from = starts.includes("earliest") ? "earliest" : Math.min(.../** @type {number[]} */ (starts));
      const id = this._id();
      this._followed.set(channel, id);
      this.send({ type: "subscribe", data: starts.length > 0 ? { channel, from } : { channel }, id });
    }
    for (const channel of [...this._followed.keys()]) {
      if (roots.includes(channel)) continue;
      this._followed.delete(channel);
      this.send({ type: "unsubscribe", data: { channel } });
    }
  }

  /** @param {string} root */
  _members(root) {
    return [...this._subscriptions].filter(({ pattern }) => covers(root, pattern));
  }

  /** @param {string | null} id The pattern whose `subscribe` had this id. @returns {string | undefined} */
  _root(id) {
    return id === null ? undefined : [...this._followed].find(([, each]) => each === id)?.[0];
  }

  /** @param {Subscription} subscription */
  _forget(subscription) {
    if (this._subscriptions.delete(subscription)) this._follow();
  }

  _sendPending() {
    while (this.isUp && this._underWay.size < WINDOW && this._unsent.length > 0) {
      const id = this._unsent[0];
      const entry = this._pending.get(id);
      if (entry) {
        const { length } = entry.text;
        if (this._underWay.size > 0 && this._characters + length > WINDOW_CHARACTERS) return;
        this._underWay.set(id, length);
        this._characters += length;
        this._socket.send(entry.text);
      }
      this._unsent.shift();
    }
  }

  /** It is on its way no longer. @param {string} id */
  _landed(id) {
    this._characters -= this._underWay.get(id) ?? 0;
    this._underWay.delete(id);
  }

  /** The node is starting or stopping: the same again in a second, if the connection lives that long. @param {string} id */
  _sendLater(id) {
    const generation = this._generation;
    this._landed(id);
    setTimeout(() => {
      if (generation !== this._generation) return;
      this._unsent.push(id);
      this._sendPending();
    }, 1000);
  }

  /** @param {string} id @param {LinkdError | null} error @param {number} [offset] */
  _settle(id, error, offset = 0) {
    const entry = this._pending.get(id);
    if (!entry) return;
    this._pending.delete(id);
    this._landed(id);
    clearTimeout(entry.timer);
    if (error) entry.reject(error);
    else entry.resolve({ id, offset });
    this._sendPending();
  }

  /** @param {(entry: {whenDown: string}) => boolean} which @param {string} code @param {string} message */
  _rejectPending(which, code, message) {
    for (const [id, entry] of [...this._pending]) if (which(entry)) this._settle(id, new LinkdError(code, message, id));
  }

  /** @param {number} generation @param {LinkdError} error @param {number | null} [code] */
  _failed(generation, error, code = null) {
    if (generation !== this._generation) return;
    const wasUp = this.isUp;
    this._drop(null, error.message);
    this._failures += 1;
    const { maxAttempts, minDelay, maxDelay, random } = this.options;
    // 1008 and 44xx are a node's "not you"; asking often would not help.
    const rejected = error.code === "rejected" || code === 1008 || (code !== null && code >= 4400 && code < 4500);
    const ceiling = rejected ? maxDelay : Math.min(maxDelay, minDelay * 2 ** Math.min(this._failures - 1, 30));
    const delay = rejected ? maxDelay * (0.8 + 0.4 * random()) : ceiling * random();
    const over = this._failures >= maxAttempts;
    if (!over) this._timers.retry = setTimeout(() => this._connect(), delay * 1000);
    this._enter(over ? "stopped" : rejected ? "rejected" : "waiting", error.message, over ? null : delay);
    if (over) this._rejectPending(() => true, "unsettled", `gave up after ${this._failures} attempts`);
    else this._rejectPending((entry) => entry.whenDown === "reject", "unsettled", "the connection fell before the ack");
    if (wasUp) {
      this._guarded(() => this.onClose({ code, reason: error.message }));
      this._fire("close", { code, reason: error.message });
    } else this._error(error);
  }

  /** End whatever connection or attempt there is; its late frames are not ours. @param {number | null} code @param {string} reason */
  _drop(code, reason) {
    this._generation += 1;
    for (const timer of Object.values(this._timers)) clearTimeout(timer);
    this._timers = {};
    this._attempt?.abort();
    this._attempt = null;
    const socket = this._socket;
    this._socket = null;
    if (!socket) return;
    try {
      if (code === null && typeof socket.terminate === "function") socket.terminate();
      else socket.close(code ?? 1000, reason.slice(0, 40));
    } catch {
      // A socket that never opened may refuse to be closed; it is not ours any more either way.
    }
  }

  /** @param {State} state @param {string | null} reason @param {number | null} retrySeconds */
  _enter(state, reason, retrySeconds) {
    this.status._set({ state, attempts: this._failures, retrySeconds, reason });
    this._fire("status", this.status.value);
  }

  /** @param {LinkdError} error */
  _error(error) {
    this._guarded(() => this.onError(error));
    this._fire("error", error);
  }

  /** @param {string} name @param {any} detail */
  _fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** A caller's mistake must not stop what others get; it is reported where such mistakes are. @param {() => void} call */
  _guarded(call) {
    try {
      call();
    } catch (error) {
      if (typeof globalThis.reportError === "function") reportError(error);
      else console.error(error);
    }
  }

  _id() {
    this._serial += 1;
    return typeof globalThis.crypto?.randomUUID === "function"
      ? crypto.randomUUID()
      : `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}-${this._serial}`;
  }
}

/**
 * Make a `Linkd` and open it.
 * @param {Options} [options]
 */
export function connect(options) {
  return new Linkd(options).open();
}

/** Seconds that never step. */
function now() {
  return performance.now() / 1000;
}

/** @param {string} base64 */
function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/**
 * Tell whether `wide` selects every channel that `narrow`, a pattern or a channel, selects.
 * @param {string} wide
 * @param {string} narrow
 */
function covers(wide, narrow) {
  const words = narrow.split(".");
  const parts = wide.split(".");
  for (const [place, part] of parts.entries()) {
    if (part === ">") return words.length > place;
    if (place >= words.length || words[place] === ">") return false;
    if (part !== "*" && part !== words[place]) return false;
  }
  return parts.length === words.length;
}
