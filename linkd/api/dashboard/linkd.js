// @ts-check
/**
 * linkd.js: the browser's and Node.js' way to a linkd node, in one file without dependencies.
 *
 *     import { connect } from "/linkd.js";
 *     const node = connect({ url: "http://127.0.0.1:9480", key: "…" });
 *     node.subscribe("orders", (record) => show(record.data));
 *     await node.publish("orders", { total: 12 });
 *
 * It connects by itself and for ever: nothing but a WebSocket is needed, capped exponential
 * backoff with full jitter, a heartbeat in both directions. After a reconnect each subscription resumes at its
 * offset, and what was being published is sent once more under its id, which the node stores once.
 *
 * All durations are seconds.
 */

/**
 * One message as it arrives. `offset` is 0 where the channel is volatile, `origin_offset` its place in the log of `origin`. `data` is what its JSON says, a string
 * where it was published as text, a Uint8Array where it is neither. `headers` are the short strings that were
 * published with it. Where the node can't read the record, `unreadable` is true and `data` is its whole encoding.
 * @typedef {{channel: string, type: string | null, data: any, offset: number, origin: string | null, origin_offset?: number,
 *   headers: Record<string, string>, time?: string, id?: string | null, unreadable?: boolean}} Message
 */
/** @typedef {"stopped" | "connecting" | "up" | "waiting" | "rejected"} State */
/**
 * The connection to the node. `retrySeconds` is set while `waiting` or `rejected`; `reason` says why it is not up.
 * @typedef {{state: State, attempts: number, retrySeconds: number | null, reason: string | null}} Status
 */
/**
 * @typedef {object} Options
 * @property {string | URL} [url] The node, `http://HOST:PORT`, or `https://HOST/PATH/` behind a proxy that serves it
 *   below a path; by default the root of where the page came from.
 * @property {string} [key] A key of `[[api.key]]`.
 * @property {() => string | null | Promise<string | null>} [token] Or: it brings a fresh token for every connect.
 *   With neither, none is sent: the cookie session goes along, or the node asks for no key.
 * @property {any} [WebSocket] The class to use where the platform has none, as that of `ws` in Node.js 20.
 * @property {typeof fetch} [fetch] With it a page finds out when a node that it can't connect to is back.
 * @property {number} [pingInterval] A ping goes out this often: 5.
 * @property {number} [pingTimeout] A ping that got no answer for so long, and nothing heard for `pingInterval +
 *   pingTimeout`: the connection is dropped: 2.
 * @property {number} [connectTimeout] For token, connect, upgrade and the node's first message together: 10.
 * @property {number} [minDelay] Attempts are that far apart while nothing answers; where something does, the backoff
 *   starts here: 0.5. A node with many pages spreads their return over more seconds.
 * @property {number} [maxDelay] The backoff never exceeds this: 15.
 * @property {number} [stableAfter] Up for so long, the backoff starts again from `minDelay`: 5.
 * @property {number} [maxAttempts] Give up after so many failures in a row; by default never.
 * @property {"wait" | "reject"} [whenDown] What `publish` does while the connection is down: "wait".
 * @property {number} [maxPending] Publishes that may wait for their ack: 10000.
 * @property {boolean} [status] Hear of every change of a link; see `links`.
 * @property {boolean} [presence] Hear who joins and leaves, as messages of type `joined`, `left` and `present` to `on`.
 * @property {(frame: any) => string} [encode] Default JSON.stringify.
 * @property {(text: string) => any} [decode] Default JSON.parse.
 * @property {() => number} [random] For tests: [0, 1).
 */

/** Publishes under way at once; the others wait here, not in buffers on the way. */
const WINDOW = 256;
/** Characters of publishes that are on their way: less than the daemon takes, whatever its settings. */
const WINDOW_CHARACTERS = 262_144;
/** Bytes that a frame may have beside the body in it, and those that a body may have until the node has sent its own bound. */
const ENVELOPE_BYTES = 65_536;
const MOST_BODY_BYTES = 16 * 1024 * 1024;
/** Deeper JSON would not arrive as JSON. */
const MOST_DEPTH = 60;
/** What a longer `setTimeout` makes of its delay is 1 ms. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;
/** A subscription that the node has ended is asked for again so often: rights come back. */
const AGAIN_SECONDS = 15;
/** While the browser is offline, an attempt is made so often all the same: it may be wrong. */
const OFFLINE_SECONDS = 60;
/** No node spreads the return of its pages over more. */
const MOST_SPREAD_SECONDS = 30;
/** A timer that fires so late proves that this program, not the node, was asleep. */
const LATE_SECONDS = 1;
/** A Node.js program may be busy for so long before the node takes it for dead, on a path that lives. */
const BUSY_SECONDS = "30";
/** Whether a node that is away is back is asked by HTTP: browsers delay WebSockets that failed often, by up to a minute. */
const ASK_SECONDS = 1;
/** A WebSocket is tried all the same, so often: something may answer that one only. */
const BLIND_SECONDS = 120;
const SUBPROTOCOL = "linkd.text.1";
const BEARER = "linkd.bearer.";
/** A consumer's cursor is moved so often while it is busy, and at once when it is not. */
const ACK_SECONDS = 0.05;
/** A message whose function failed is handed to it again after so many seconds, then twice as many, and so on. */
const FIRST_RETRY_SECONDS = 1;
const LAST_RETRY_SECONDS = 15;
/** Epochs of the log that a subscription remembers. */
const EPOCHS = 16;
const RESERVED = ["ping", "pong", "subscribe", "unsubscribe", "ack", "error", "status", "joined", "left", "present", "gap"];
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
const POSITIVE = ["pingInterval", "pingTimeout", "connectTimeout", "maxAttempts", "maxPending"];
const NOT_NEGATIVE = ["minDelay", "maxDelay", "stableAfter"];
const FUNCTIONS = ["token", "encode", "decode", "random", "fetch", "WebSocket"];

/** As the node has it; `resume.` is for those that come and go. */
const CONSUMER_NAME = /^(?!resume\.)[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

/** Refusals that pass by themselves. */
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
 * A value that changes: an observer gets the present one at once, then each new one.
 * @template T
 */
export class Observable {
  /** @param {T} value @param {(call: () => any) => void} [guarded] Calls an observer, whose mistake is its own. */
  constructor(value, guarded = (call) => call()) {
    this.value = value;
    this._guarded = guarded;
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
    this._guarded(() => entry.next?.(this.value));
    return { unsubscribe: () => void this._observers.delete(entry) };
  }

  /** @param {T} value */
  _set(value) {
    this.value = value;
    for (const each of [...this._observers]) this._guarded(() => each.next?.(value));
  }

  /** What RxJS' `from` looks for. */
  ["@@observable"]() {
    return this;
  }
}

/** One pattern that is followed, over a stream of its own. Made by `Linkd.subscribe`. */
export class Subscription {
  /**
   * @param {Linkd} node
   * @param {string} pattern
   * @param {((message: Message) => void) | undefined} call
   * @param {number | "earliest" | undefined} from
   * @param {number} serial
   */
  constructor(node, pattern, call, from, serial) {
    this.node = node;
    this.pattern = pattern;
    this.call = call;
    /** Everything below was seen; undefined until the node has sent where it begins. @type {number | undefined} */
    this.next = typeof from === "number" ? from : undefined;
    this._earliest = from === "earliest";
    this._serial = serial;
    /** The first offset that was for it; undefined until it began. @type {number | undefined} */
    this._first = undefined;
    /** Once it was unsubscribed: it is kept until it is there, for the calls by type. @type {number | undefined} */
    this._until = undefined;
    /** Those made later have nothing to do with it: it had ended. */
    this._endedAt = Infinity;
    /** How far it has the log, by epochs, oldest first. @type {[string, number][]} */
    this._seen = [];
    /** Its name on this connection, until the node ends it. @type {string | null} */
    this._id = null;
    /** The node of this connection has sent where it begins. */
    this._begun = false;
    /** It is asked for again later; the application knows why. */
    this._away = false;
    /** A named consumer's, which handles one message after the other. @type {Consumer | null} */
    this._consumer = null;
  }

  /** Nothing more comes. */
  unsubscribe() {
    this.node._forget(this);
  }

  /** Where the node is to begin, as a `subscribe` says it. */
  get _start() {
    if (this._consumer) return { consumer: this._consumer.name, from: this._consumer.from };
    if (this._seen.length > 0) return { seen: this._seen };
    if (this.next !== undefined) return { from: this.next };
    return this._earliest ? { from: "earliest" } : {};
  }

  /** What comes from `next` on is wanted, and is of `epoch`. @param {number} next @param {string} [epoch] */
  _move(next, epoch) {
    this.next = next;
    const newest = this._seen.at(-1);
    if (newest && (!epoch || newest[0] === epoch)) newest[1] = next;
    else if (epoch) this._seen = [...this._seen, /** @type {[string, number]} */ ([epoch, next])].slice(-EPOCHS);
  }

  /**
   * The node sent where it begins.
   * @param {number} offset
   * @param {string} epoch
   * @param {boolean} sameLog
   * @returns {boolean} whether it resumes where it was, not in another log or an older copy of it
   */
  _begin(offset, epoch, sameLog) {
    if (this._consumer) {
      this._consumer.begin(offset);
      this._seen = []; // where it was counts for nothing: the cursor is where it goes on
    }
    const same = this._seen.length === 0 || (sameLog && offset >= /** @type {number} */ (this.next));
    if (!same) this._seen = sameLog ? this._seen.filter(([, next]) => next <= offset) : [];
    if (!same || this._first === undefined) this._first = offset;
    this._move(offset, epoch);
    this._begun = true;
    this._away = false;
    return same;
  }

  /** Whether its own stream brings, or has brought, this message. @param {string} channel @param {number} offset */
  _has(channel, offset) {
    if (this._consumer || !covers(this.pattern, channel)) return false;
    return offset ? this._first !== undefined && offset >= this._first : this._begun;
  }
}

/** What a named consumer has yet to handle: one message after the other, each until its function has succeeded. @internal */
class Consumer {
  /**
   * @param {string} name
   * @param {number | "earliest" | "latest"} from Where it begins if the node does not know it.
   * @param {(message: Message) => Promise<boolean>} handle Whether it succeeded.
   * @param {(next: number) => void} acknowledge
   */
  constructor(name, from, handle, acknowledge) {
    this.name = name;
    this.from = from;
    this._handle = handle;
    this._acknowledge = acknowledge;
    /** @type {Message[]} */
    this._waiting = [];
    this._working = false;
    /** Messages of an earlier stream than this one come again: they are not acknowledged. */
    this._stream = 0;
    /** Everything below was handled; the node knows it of what is below `_acked`. */
    this._done = this._acked = 0;
    this._ackedAt = -Infinity;
    /** @type {any} */
    this._ackTimer = null;
    /** Of the time before a message is handed to its function again. @type {any} */
    this._timer = null;
    this._again = () => {};
    /** Called once the present message is done, if it is to end. @type {(() => void) | null} */
    this._ends = null;
  }

  /** The connection fell, or the node begins again at its cursor: what was not acknowledged comes again. @param {number} next */
  begin(next) {
    this._stream += 1;
    this._done = this._acked = next;
    clearTimeout(this._ackTimer);
    this._ackTimer = null;
    this._empty();
  }

  /** @param {Message} message */
  take(message) {
    if (this._ends) return;
    this._waiting.push(message);
    this._work();
  }

  /** Everything below `next` is over, and nothing of it is waiting here. @param {number} next */
  pass(next) {
    if (!this._working && this._waiting.length === 0) this._finished(next);
  }

  /** Take no further message. @param {() => void} ended Called when none is being handled. */
  end(ended) {
    this._ends = ended;
    if (this._working) this._empty();
    else ended();
  }

  _empty() {
    this._waiting = [];
    clearTimeout(this._timer);
    this._again();
  }

  /** Everything below `next` is done: acknowledge at once if nothing waits, else within `ACK_SECONDS`. @param {number} next */
  _finished(next) {
    this._done = next;
    if (this._waiting.length === 0 || now() - this._ackedAt >= ACK_SECONDS) this._ack();
    else this._ackTimer ??= setTimeout(() => this._ack(), ACK_SECONDS * 1000);
  }

  _ack() {
    clearTimeout(this._ackTimer);
    this._ackTimer = null;
    if (this._done <= this._acked) return;
    this._acked = this._done;
    this._ackedAt = now();
    this._acknowledge(this._done);
  }

  async _work() {
    if (this._working) return;
    this._working = true;
    for (let delay = FIRST_RETRY_SECONDS; this._waiting.length > 0; ) {
      const [message] = this._waiting;
      const stream = this._stream;
      const succeeded = await this._handle(message);
      if (stream !== this._stream) continue; // another stream: it is at the front again, or was acknowledged
      if (succeeded) {
        this._waiting.shift();
        delay = FIRST_RETRY_SECONDS;
        if (message.offset) this._finished(message.offset + 1);
      } else if (this._waiting.length > 0) {
        await new Promise((resolve) => {
          this._again = () => resolve(null);
          this._timer = setTimeout(this._again, delay * 1000);
        });
        delay = Math.min(delay * 2, LAST_RETRY_SECONDS);
      }
    }
    this._working = false;
    this._ends?.();
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
    checkOptions(this.options);
    this.url = address(options.url);
    this.WebSocket = options.WebSocket ?? /** @type {any} */ (globalThis).WebSocket;
    if (!this.WebSocket) throw new LinkdError("no-websocket", "this platform has no WebSocket: pass one, as {WebSocket}");
    /** @type {Observable<Status>} */
    this.status = new Observable(STOPPED, (call) => this._guarded(call));
    /** What `status: true` reports of each link, by peer; empty while the connection is down. @type {Observable<Map<string, any>>} */
    this.links = new Observable(new Map(), (call) => this._guarded(call));
    /** What the node reported of itself: `node`, `version`, `log`, `epoch`, `next`, `max_body_bytes`. @type {any} */
    this.info = null;
    /** @type {Map<string, Set<(data: any, message: Message) => void>>} */
    this._byType = new Map();
    /** In the order in which they were made. @type {Set<Subscription>} */
    this._subscriptions = new Set();
    /** By their names on this connection. @type {Map<string, Subscription>} */
    this._followed = new Map();
    /** What ended subscriptions have seen that others have yet to see. @type {Subscription[]} */
    this._ended = [];
    /** `text` is the frame as it is sent, `order` that of the calls. @type {Map<string, {text: any, order: number,
     *   whenDown: string, timer: any, resolve: (ack: {id: string, offset: number}) => void,
     *   reject: (error: LinkdError) => void}>} */
    this._pending = new Map();
    /** Ids of those that were not yet sent on this connection are at `_sent` and behind it, oldest first. @type {string[]} */
    this._unsent = [];
    this._sent = 0;
    /** Ids of those that the node refused for now. @type {string[]} */
    this._postponed = [];
    /** Those that are not answered: id and characters. @type {Map<string, number>} */
    this._underWay = new Map();
    /** The characters of all of them. */
    this._characters = 0;
    /** Large messages that have come in part, by number. @type {Map<number, {pieces: Uint8Array[], size: number, missing: number}>} */
    this._parts = new Map();
    /** @type {any} */
    this._socket = null;
    this._generation = 0;
    /** When something was heard last, when a ping was sent last, and the first since which nothing was heard. */
    this._heard = this._pinged = this._asked = 0;
    /** Pings without an answer; whether one is wanted soon; wakes that came late meanwhile. */
    this._asks = 0;
    this._hurry = false;
    this._lates = 0;
    /** Connections in a row that ended by silence. */
    this._silences = 0;
    /** Failures in a row; those of them where something had answered. */
    this._failures = this._broken = 0;
    /** @type {Record<string, any>} */
    this._timers = {};
    /** @type {AbortController | null} */
    this._attempt = null;
    this._attempted = 0;
    /** The node has the log of the last connection. */
    this._sameLog = true;
    /** What is being waited for. */
    this._stage = "";
    /** The browser hid why the last attempt failed; whether the page's policy lets it find out. */
    this._hidden = false;
    this._mayAsk = true;
    /** Something answered by HTTP, just now. */
    this._answers = false;
    /** When a WebSocket was tried last. */
    this._dialed = -Infinity;
    /** Over so many seconds all pages of the node are to come back, when it goes away. */
    this._spread = 0;
    this._serial = 0;
    this._wrapped = new WeakMap();
    this._around = this._surroundings();
  }

  // Hooks for subclasses: by default they do nothing.

  /** The connection is up; subscriptions and unsettled publishes are about to be sent. */
  onOpen() {}

  /**
   * A message came for a subscription, which has not seen it yet. Return false to keep it from that, and from the
   * calls by type.
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
    this._failures = this._broken = this._silences = 0;
    for (const [target, name, call] of this._around) target.addEventListener(name, call);
    this._connect();
    return this;
  }

  /** Disconnect and stay so. What still waits for its ack is rejected as `unsettled`. */
  close() {
    this._drop(1000, "closed by us");
    this._stop(null, "closed before the node had answered");
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
    if (typeof type !== "string" || typeof call !== "function") throw new TypeError("expected a type and a function");
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
   *
   * As a named consumer the node remembers how far it is, also when this program ends: `call` gets one message at a
   * time, in order, and a message is done once `call` has returned, or its promise is fulfilled. After a failure `call`
   * gets it again, after 1 to 15 s; what was not done when the connection fell comes again. No calls by type are made.
   * @param {string} pattern
   * @param {((message: Message) => any) | null} [call] Beside the calls by type.
   * @param {{from?: number | "earliest" | "latest" | null, consumer?: string | null}} [options] The first offset wanted;
   *   by default what comes from now on. With `consumer` it counts only where the node does not know that name yet.
   * @throws {TypeError} An argument can't be used.
   */
  subscribe(pattern, call, options) {
    const from = options?.from ?? "latest";
    const consumer = options?.consumer ?? null;
    if (typeof pattern !== "string" || pattern === "" || pattern.length > 8192 || !isWellFormed(pattern)) {
      throw new TypeError("pattern: expected a channel or a pattern");
    }
    if (call != null && typeof call !== "function") throw new TypeError("call: expected a function");
    if (from !== "earliest" && from !== "latest" && !(typeof from === "number" && Number.isSafeInteger(from) && from >= 0)) {
      throw new TypeError('from: expected an offset, "earliest" or "latest"');
    }
    if (consumer !== null && (typeof consumer !== "string" || !CONSUMER_NAME.test(consumer))) {
      throw new TypeError("consumer: expected 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit");
    }
    if (consumer !== null && !call) throw new TypeError("call: a consumer needs a function that handles its messages");
    this._serial += 1;
    const start = from === "latest" ? undefined : from;
    const subscription = new Subscription(this, pattern, call ?? undefined, start, this._serial);
    if (consumer !== null) subscription._consumer = this._consume(subscription, consumer, from);
    this._subscriptions.add(subscription);
    this._follow();
    return subscription;
  }

  /**
   * Publish one message. Resolves once it is on the node's disk (at once, with offset 0, on a volatile channel).
   * @param {string} channel
   * @param {any} data What JSON can hold, whole: no `Map`, no bytes, no NaN.
   * @param {{type?: string, id?: string | number | null, headers?: Record<string, string>, whenDown?: "wait" | "reject",
   *   timeout?: number}} [options] The same `id` again, within the node's `id_window`, is stored once. `headers` are
   *   at most 16 short strings by names of letters, digits and `-`, which come back in lower case.
   * @returns {Promise<{id: string, offset: number}>} rejected with a TypeError: what can't be published; or with a
   *   LinkdError: what the node refused (`log-full`, `channel-refused`, …), `malformed` (an option), `body-too-large`,
   *   `down` (not sent), `unsettled` or `timeout` (the node may have it: publish it again with the error's `id` to
   *   settle it), `too-many` (`maxPending`).
   */
  publish(channel, data, options) {
    const { type = "message", headers, whenDown = this.options.whenDown, timeout } = options ?? {};
    const given = options?.id ?? this._id();
    const id = /** @type {string} */ (Number.isSafeInteger(given) ? String(given) : given);
    /** @type {string} */
    let text;
    try {
      const refused = this._refusal(channel, type, id, whenDown, headers, timeout);
      if (refused) return Promise.reject(refused);
      if (this.options.encode === JSON.stringify) checkData(data, MOST_DEPTH);
      text = awaited(this.options.encode({ type, data: data ?? null, channel, id, headers: headers ?? undefined }), "encode");
      if (typeof text !== "string") throw new TypeError("encode: expected it to return a string");
      const most = this._mostBytes();
      if (isLonger(text, most)) {
        return Promise.reject(new LinkdError("body-too-large", `expected a frame of at most ${most} bytes`, id));
      }
    } catch (error) {
      return Promise.reject(error);
    }
    return new Promise((resolve, reject) => {
      const late = () => this._settle(id, new LinkdError("timeout", `no answer in ${timeout} s`, id));
      const bounded = timeout !== undefined && timeout !== null && timeout !== Infinity;
      const timer = bounded ? setTimeout(late, Math.min(timeout * 1000, LONGEST_TIMER_MS)) : null;
      this._serial += 1;
      this._pending.set(id, { text, order: this._serial, whenDown, timer, resolve, reject });
      this._unsent.push(id);
      this._sendPending();
    });
  }

  /** Send any frame as it is, unless the connection is down. @param {any} frame @returns {boolean} whether it was sent */
  send(frame) {
    if (!this.isUp) return false;
    const text = awaited(this.options.encode(frame), "encode");
    if (typeof text !== "string" || isLonger(text, this._mostBytes())) throw new TypeError("expected a frame that the node takes");
    this._socket.send(text);
    return true;
  }

  /** Whether the connection to the node is up. */
  get isUp() {
    return this.status.value.state === "up";
  }

  /** @param {string} type @param {any} listener @param {any} [options] */
  addEventListener(type, listener, options) {
    super.addEventListener(type, this._wrap(listener), options);
  }

  /** @param {string} type @param {any} listener @param {any} [options] */
  removeEventListener(type, listener, options) {
    super.removeEventListener(type, this._wrap(listener), options);
  }

  // From here on: how it is done.

  /**
   * @param {any} channel @param {any} type @param {any} id @param {any} whenDown @param {any} headers @param {any} timeout
   * @returns {LinkdError | null}
   */
  _refusal(channel, type, id, whenDown, headers, timeout) {
    const isText = (/** @type {any} */ value) => typeof value === "string" && isWellFormed(value);
    const malformed = (/** @type {string} */ message) => new LinkdError("malformed", message, isText(id) ? id : null);
    if (!isText(id) || id === "") return malformed("id: expected a string that is not empty, or a whole number");
    if (!isText(channel) || channel === "") return malformed("channel: expected a string that is not empty");
    if (!isText(type)) return malformed("type: expected a string");
    if (headers !== undefined && headers !== null) {
      const isPlain = typeof headers === "object" && !Array.isArray(headers);
      if (!isPlain || !Object.entries(headers).flat().every(isText)) return malformed("expected strings as headers");
    }
    if (whenDown !== "wait" && whenDown !== "reject") return malformed('whenDown: expected "wait" or "reject"');
    if (timeout !== undefined && timeout !== null && !(typeof timeout === "number" && timeout >= 0)) {
      return malformed("timeout: expected seconds");
    }
    if (RESERVED.includes(type)) return new LinkdError("bad-type", `${type} is a reserved type`, id);
    if (this._pending.has(id)) return new LinkdError("bad-id", `${id} is being published`, id);
    if (this._pending.size >= this.options.maxPending) return new LinkdError("too-many", "too many publishes wait", id);
    if (!this.isUp && (whenDown === "reject" || this.status.value.state === "stopped")) {
      return new LinkdError("down", "the connection to the node is down", id);
    }
    return null;
  }

  _mostBytes() {
    return (this.info?.max_body_bytes ?? MOST_BODY_BYTES) + ENVELOPE_BYTES;
  }

  /** What a browser tells of the network and of the page: where, which event, and what to do. @returns {[EventTarget, string, (event: any) => void][]} */
  _surroundings() {
    const { window, document, navigator } = /** @type {any} */ (globalThis);
    const again = () => this._wake(0);
    const page = () => document.visibilityState !== "hidden" && this._wake(LATE_SECONDS);
    /** @type {[any, string, (event: any) => void][]} */
    const all = [
      [globalThis, "online", again],
      [globalThis, "offline", () => this._probe()],
      [window, "pageshow", (event) => event.persisted && again()],
      [document, "visibilitychange", page],
      [document, "resume", page],
      [document, "securitypolicyviolation", (event) => this._forbidden(event)],
      [navigator?.connection, "change", again],
    ];
    return all.filter(([target]) => typeof target?.addEventListener === "function");
  }

  /** The way to the node may be another, or good again. @param {number} least An attempt may have taken so many seconds. */
  _wake(least) {
    if (this.isUp) this._probe();
    else if (this.status.value.state !== "connecting" || now() - this._attempted >= least) this._connect();
  }

  /** The page may not connect there. @param {any} event */
  _forbidden(event) {
    if (this.status.value.state !== "connecting") return;
    let host = "";
    try {
      host = new URL(event.blockedURI).host;
    } catch {
      // "inline", "eval": not of a connection.
    }
    if (host !== this.url.host || event.effectiveDirective !== "connect-src") return;
    if (/^http/.test(event.blockedURI)) return void (this._mayAsk = false);
    const why = `the page's Content-Security-Policy forbids connections to ${host}: add it to connect-src`;
    this._failed(this._generation, new LinkdError("rejected", why));
  }

  async _connect() {
    this._drop(1000, "again");
    const generation = this._generation;
    this._enter("connecting", this.status.value.reason, null);
    if (generation !== this._generation) return;
    const attempt = (this._attempt = new AbortController());
    this._attempted = now();
    this._timers.attempt = setTimeout(
      () => this._failed(generation, new LinkdError("timeout", `the node did not answer in time: waited for ${this._stage}`)),
      this.options.connectTimeout * 1000,
    );
    try {
      const there = await this._isThere(attempt.signal);
      if (generation !== this._generation) return;
      if (!there) throw new LinkdError("unreachable", "no connection to the node can be made");
      this._stage = "the answer of `token`";
      const token = await this._token(attempt.signal);
      if (generation !== this._generation) return;
      this._dial(generation, token);
    } catch (error) {
      this._failed(generation, error instanceof LinkdError ? error : new LinkdError("unreachable", String(error)));
    }
  }

  /** Whether something answers at the node's address, as far as that must and can be found out. @param {AbortSignal} signal */
  async _isThere(signal) {
    const ask = this.options.fetch ?? globalThis.fetch;
    this._answers = false;
    const must = this._hidden && this._mayAsk && now() - this._dialed < BLIND_SECONDS;
    if (!must || typeof ask !== "function") return true;
    this._stage = "the node to be there";
    const url = new URL("healthz", this.url);
    url.protocol = url.protocol.replace("ws", "http");
    /** @type {Promise<boolean>} */
    const late = new Promise((resolve) => (this._timers.ask = setTimeout(() => resolve(true), ASK_SECONDS * 1000)));
    const answered = Promise.resolve()
      .then(() => ask(url, { mode: "no-cors", cache: "no-store", signal }))
      .then(() => (this._answers = true), () => false);
    return Promise.race([late, answered]);
  }

  /**
   * Bring the key, or a token: three tries, so that one lost request costs no backoff.
   * @param {AbortSignal} signal
   * @returns {Promise<string | null>}
   */
  async _token(signal) {
    const { token, key } = this.options;
    if (!token) return key ?? null;
    for (let tries = 1; ; tries += 1) {
      try {
        const found = await token();
        if (found == null || typeof found === "string") return found ?? null;
        throw new LinkdError("unreachable", "token: expected it to return a string");
      } catch (error) {
        const refused = error instanceof LinkdError && error.code === "rejected";
        if (refused || tries === 3 || signal.aborted) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200 * tries));
      }
    }
  }

  /** @param {number} generation @param {string | null} token */
  _dial(generation, token) {
    const url = new URL("ws", this.url);
    url.protocol = url.protocol === "https:" || url.protocol === "wss:" ? "wss:" : "ws:";
    url.hash = "";
    const { status, presence } = this.options;
    const query = { linkd: "1", envelope: "1", status: status && "1", presence: presence && "1", timeout: BUSY_SECONDS };
    for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value);
    this._stage = "the WebSocket to open";
    // A page can set no header: a key or token goes along as a subprotocol, and into no URL that is logged on its way.
    const shown = token === null ? [] : [SUBPROTOCOL, BEARER + base64url(token)];
    this._dialed = now();
    const socket = (this._socket = new this.WebSocket(url.href, shown));
    socket.binaryType = "arraybuffer";
    const mine = (/** @type {(event: any) => void} */ call) => (/** @type {any} */ event) => {
      if (generation === this._generation) call(event);
    };
    let said = ""; // a browser's error has no text; Node.js has one
    socket.onopen = mine(() => (this._stage = "the first message"));
    socket.onmessage = mine((event) => this._received(event.data));
    socket.onerror = mine((event) => (said = (event.message || event.error?.message || "").replace(/^Received network error or non-101.*/, "")));
    socket.onclose = mine((event) => {
      const answered = event.reason || this._stage !== "the WebSocket to open";
      const hidden = !said && !answered;
      const status = /response: (\d{3})/.exec(said)?.[1]; // where a program can see it
      const refused = ["400", "401", "403", "404", "421", "429"].includes(status ?? "");
      const why = hidden && this._answers ? "the node answers, but its WebSocket was not opened: is the page's origin in `api.origins`?" : "";
      const code = refused ? "rejected" : answered || why || status ? "closed" : "unreachable";
      this._hidden = hidden;
      this._failed(generation, new LinkdError(code, event.reason || said || why || `closed (${event.code})`), event.code);
    });
  }

  /** The node has accepted us, and sent who it is. @param {any} info */
  _opened(info) {
    if (this.status.value.state !== "connecting") return;
    const generation = this._generation;
    this._sameLog = this.info === null || this.info.log === info.log;
    this.info = info;
    this._hidden = false;
    this._spread = seconds(info.return_spread);
    clearTimeout(this._timers.attempt);
    const { stableAfter, pingInterval, pingTimeout } = this.options;
    this._timers.stable = setTimeout(() => (this._failures = this._broken = 0), stableAfter * 1000);
    const long = 2 * this._patience * (pingInterval + pingTimeout);
    this._timers.heard = setTimeout(() => (this._silences = 0), Math.min(long * 1000, LONGEST_TIMER_MS));
    this._heard = this._pinged = now();
    this._asks = this._lates = 0;
    this._hurry = false;
    this._beat();
    if (!this._sameLog) this._ended = [];
    this._followed.clear();
    for (const each of this._subscriptions) each._id = null;
    this._unsent = [...this._pending.keys()];
    this._sent = 0;
    this._postponed = [];
    this._underWay.clear();
    this._characters = 0;
    for (const [id, { text }] of [...this._pending]) {
      if (isLonger(text, this._mostBytes())) this._settle(id, new LinkdError("body-too-large", "larger than the node takes", id));
    }
    this._enter("up", null, null);
    if (generation === this._generation) this._guarded(() => this.onOpen());
    if (generation === this._generation) this._fire("open", null);
    if (generation !== this._generation) return;
    this._follow();
    this._sendPending();
  }

  // The heartbeat. Judged is only what was asked, by timers that were on time: a page that is hidden may have its timers
  // run once a minute, and a laptop that was asleep has heard nothing either.

  /** What was too slow twice in a row may take twice as long, and so on: a path may be slow and alive. */
  get _patience() {
    return 2 ** Math.min(Math.max(this._silences - 1, 0), 4);
  }

  /** When the connection is given up unless something is heard. */
  get _due() {
    if (this._asks === 0) return Infinity;
    const { pingInterval, pingTimeout } = this.options;
    const asked = this._asked + pingTimeout * this._patience;
    return this._hurry ? asked : Math.max(asked, this._heard + (pingInterval + pingTimeout) * this._patience);
  }

  _ping() {
    this._pinged = now();
    if (this._asks === 0) this._asked = this._pinged;
    this._asks += 1;
    this._guarded(() => void this.send({ type: "ping" }));
  }

  /** Ask whether the connection lives, and be quick about it. */
  _probe() {
    if (!this.isUp || this._hurry) return;
    this._asks = 0;
    this._hurry = true;
    this._ping();
    clearTimeout(this._timers.beat);
    this._beat();
  }

  _beat() {
    const generation = this._generation;
    const wake = Math.min(this._pinged + this.options.pingInterval, this._due);
    const look = () => {
      if (generation !== this._generation) return;
      const silence = now() - this._heard;
      if (now() >= this._due) {
        if (now() <= wake + LATE_SECONDS || this._lates > 0) {
          if (!this._hurry) this._silences += 1; // a path that ended while the page knew of it is no slow one
          return this._failed(generation, new LinkdError("silence", `nothing heard for ${silence.toFixed(1)} s`));
        }
        this._lates += 1;
        this._asks = 0;
        this._ping();
      } else if (now() >= this._pinged + this.options.pingInterval) this._ping();
      this._beat();
    };
    this._timers.beat = setTimeout(look, Math.min(Math.max(0, wake - now()) * 1000, LONGEST_TIMER_MS));
  }

  // What comes in.

  /** @param {any} data */
  _received(data) {
    this._heard = now();
    this._asks = this._lates = 0;
    this._hurry = false;
    if (typeof data !== "string") return this._part(data);
    let frame;
    try {
      frame = awaited(this.options.decode(data), "decode");
    } catch (error) {
      this._error(new LinkdError("undecodable", `a frame could not be decoded: ${error}`));
      return;
    }
    if (frame === null || typeof frame !== "object") return;
    if (typeof frame.channel === "string") this._message(frame);
    else this._control(frame.type, frame.data ?? {});
  }

  /** A part of a large message: its number, and bytes. @param {ArrayBuffer} buffer */
  _part(buffer) {
    const number = new DataView(buffer).getUint32(0);
    const whole = this._parts.get(number);
    if (!whole) return;
    const piece = new Uint8Array(buffer, 4);
    whole.pieces.push(piece);
    whole.missing -= piece.length;
    if (whole.missing > 0) return;
    this._parts.delete(number);
    const joined = new Uint8Array(whole.size);
    let place = 0;
    for (const each of whole.pieces) {
      joined.set(each, place);
      place += each.length;
    }
    this._silences = 0;
    this._received(new TextDecoder().decode(joined));
  }

  /** @param {string} type @param {any} data */
  _control(type, data) {
    if (type === "ping") this._guarded(() => void this.send({ type: "pong" }));
    else if (type === "pong") this._spread = seconds(data.return_spread);
    else if (type === "opened") this._opened(data);
    else if (type === "parts") this._parts.set(data.number, { pieces: [], size: data.bytes, missing: data.bytes });
    else if (type === "ack") this._acked(data);
    else if (type === "error") this._refused(data);
    else if (type === "position") this._placed(data);
    else if (type === "status") {
      this.links._set(new Map(this.links.value).set(data.peer, data));
      this._fire("link", data);
    } else if (type === "gap") {
      const { subscription, ...gap } = data;
      this._placed({ subscription, next: gap.next });
      this._fire("gap", gap);
    } else if (type === "joined" || type === "left" || type === "present") {
      for (const call of [...(this._byType.get(type) ?? [])]) this._guarded(() => call(data, data));
    }
  }

  /** @param {any} data */
  _acked(data) {
    const subscription = this._followed.get(data.id);
    if (!subscription) return this._settle(data.id, null, data.offset ?? 0);
    const { pattern, next } = subscription;
    if (subscription._begin(data.offset, data.epoch, this._sameLog)) return;
    this._ended = [];
    const where = `${pattern} was at offset ${next} and goes on at ${data.offset}`;
    this._error(new LinkdError("log-replaced", `the node has another log than before, or an older copy of it: ${where}`));
  }

  /** Where a subscription is: what was below is over, whether it was selected or not. @param {any} data */
  _placed({ subscription: id, next, epoch }) {
    const subscription = this._followed.get(id);
    if (!subscription || typeof next !== "number") return;
    subscription._move(Math.max(subscription.next ?? 0, next), epoch);
    subscription._consumer?.pass(next);
    this._finish(subscription);
  }

  /** @param {any} data */
  _refused(data) {
    const error = new LinkdError(data.error ?? "error", data.message ?? "refused", data.id ?? null);
    const subscription = this._followed.get(data.subscription ?? data.id);
    if (subscription) return this._unfollowed(subscription, error);
    const entry = this._pending.get(data.id);
    if (entry?.whenDown === "wait" && LATER.includes(error.code)) this._sendLater(data.id);
    else if (entry) this._settle(data.id, error);
    else this._error(error);
  }

  /** The node follows it no longer: it is asked for again where it began once. @param {Subscription} subscription @param {LinkdError} error */
  _unfollowed(subscription, error) {
    const generation = this._generation;
    const passes = LATER.includes(error.code);
    this._followed.delete(/** @type {string} */ (subscription._id));
    subscription._begun = false;
    const isTaken = error.code === "in-use"; // by another program, under this consumer's name
    subscription._consumer?.begin(0);
    if (isTaken || (subscription._first === undefined && !passes)) this._subscriptions.delete(subscription);
    else {
      setTimeout(() => {
        if (generation !== this._generation) return;
        subscription._id = null;
        this._follow();
      }, (passes ? 1 : AGAIN_SECONDS) * 1000);
    }
    if (!subscription._away) this._error(error);
    subscription._away = true;
  }

  /** @param {any} frame */
  _message(frame) {
    const { type = null, origin = null, headers = {}, offset, text, base64, subscription: id, ...rest } = frame;
    const subscription = this._followed.get(id);
    if (!subscription) return; // it has ended, and the node does not know yet
    if (offset) {
      if (offset < (subscription.next ?? 0)) return;
      subscription._move(offset + 1);
    }
    const data = "data" in frame ? frame.data : (text ?? (base64 === undefined ? null : bytes(base64)));
    /** @type {Message} */
    const message = { ...rest, type, origin, headers, offset: offset ?? 0, data };
    if (subscription._consumer) return subscription._consumer.take(message);
    let keep = true;
    if (subscription._until === undefined) {
      this._guarded(() => {
        const answer = this.onMessage(message);
        keep = answer !== false;
        return answer;
      });
      if (keep && subscription.call) this._guarded(() => subscription.call?.(message));
    }
    const calls = type === null ? undefined : this._byType.get(type);
    if (keep && calls && this._brings(subscription, message)) {
      for (const call of [...calls]) this._guarded(() => call(message.data, message));
    }
    this._finish(subscription);
  }

  /** @param {Subscription} subscription @param {string} name @param {number | "earliest" | "latest"} from */
  _consume(subscription, name, from) {
    const handle = async (/** @type {Message} */ message) => {
      let succeeds = true;
      let keep = true;
      this._guarded(() => {
        const answer = this.onMessage(message);
        keep = answer !== false;
        return answer;
      });
      try {
        if (keep) await subscription.call?.(message);
      } catch (error) {
        succeeds = false;
        this._guarded(() => {
          throw error;
        });
      }
      return succeeds;
    };
    return new Consumer(name, from, handle, (next) =>
      this._guarded(() => void this.send({ type: "ack", data: { subscription: subscription._id, next } })));
  }

  /**
   * Whether it is by this subscription that a message goes to the calls by type: by the oldest that has it, so once.
   * @param {Subscription} subscription
   * @param {Message} message
   */
  _brings(subscription, { channel, offset }) {
    for (const other of this._subscriptions) {
      if (other === subscription) break;
      if (other._has(channel, offset)) return false;
    }
    return !this._ended.some((other) =>
      other._serial < subscription._serial && subscription._serial <= other._endedAt && offset < /** @type {number} */ (other.next) && other._has(channel, offset));
  }

  /** Have the node follow what it does not follow yet on this connection. */
  _follow() {
    for (const each of this._subscriptions) {
      if (!this.isUp) return;
      if (each._id !== null) continue;
      const id = (each._id = this._id());
      each._begun = false;
      this._followed.set(id, each);
      const data = { channel: each.pattern, subscription: id, ...each._start };
      this._guarded(() => void this.send({ type: "subscribe", data, id }));
    }
  }

  /** @param {Subscription} subscription */
  _forget(subscription) {
    if (!this._subscriptions.has(subscription)) return;
    if (subscription._consumer) return subscription._consumer.end(() => this._remove(subscription));
    const reached = subscription.next ?? 0;
    const others = [...this._subscriptions].filter((each) => !each._consumer);
    const ahead = Math.max(0, ...others.map((each) => each.next ?? 0));
    // A younger one that is ahead has left it to this one to call those by type.
    if (this._byType.size > 0 && subscription._begun && ahead > reached) subscription._until = ahead;
    else this._remove(subscription);
  }

  /** @param {Subscription} subscription */
  _finish(subscription) {
    if (subscription._until !== undefined && /** @type {number} */ (subscription.next) >= subscription._until) this._remove(subscription);
  }

  /** @param {Subscription} subscription */
  _remove(subscription) {
    this._subscriptions.delete(subscription);
    subscription._endedAt = this._serial;
    if (subscription._first !== undefined && !subscription._consumer) this._ended.push(subscription);
    const behind = Math.min(...[...this._subscriptions].map((each) => each.next ?? 0));
    this._ended = this._ended.filter((each) => /** @type {number} */ (each.next) > behind);
    const id = subscription._id;
    if (id !== null && this._followed.delete(id)) {
      this._guarded(() => void this.send({ type: "unsubscribe", data: { subscription: id } }));
    }
  }

  // Publishes.

  _sendPending() {
    while (this.isUp && !this._timers.later && this._underWay.size < WINDOW && this._sent < this._unsent.length) {
      const id = this._unsent[this._sent];
      const entry = this._pending.get(id);
      if (entry) {
        const { length } = entry.text;
        if (this._underWay.size > 0 && this._characters + length > WINDOW_CHARACTERS) return;
        this._underWay.set(id, length);
        this._characters += length;
        this._socket.send(entry.text);
      }
      this._sent += 1;
    }
    if (this._sent > 0 && this._sent * 2 >= this._unsent.length) {
      this._unsent = this._unsent.slice(this._sent);
      this._sent = 0;
    }
  }

  /** It is on its way no longer. @param {string} id */
  _landed(id) {
    this._characters -= this._underWay.get(id) ?? 0;
    this._underWay.delete(id);
  }

  /** The node is starting or stopping: the same again in a second, ahead of what was not sent yet. @param {string} id */
  _sendLater(id) {
    this._landed(id);
    this._postponed.push(id);
    this._timers.later ??= setTimeout(() => {
      this._timers.later = null;
      const order = (/** @type {string} */ each) => this._pending.get(each)?.order ?? 0;
      this._unsent = [...this._postponed.sort((a, b) => order(a) - order(b)), ...this._unsent.slice(this._sent)];
      this._sent = 0;
      this._postponed = [];
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

  // How it ends, and begins again.

  /** @param {number} generation @param {LinkdError} error @param {number | null} [code] */
  _failed(generation, error, code = null) {
    if (generation !== this._generation) return;
    const wasUp = this.isUp;
    this._drop(null, error.message);
    const mine = this._generation;
    if (error.code !== "silence") this._silences = wasUp ? 0 : this._silences;
    this._failures += 1;
    const over = this._failures >= this.options.maxAttempts;
    // 1008 and 44xx are a node's "not you"; asking often would not help.
    const rejected = error.code === "rejected" || code === 1008 || (code !== null && code >= 4400 && code < 4500);
    const unreachable = !wasUp && error.code === "unreachable";
    if (!unreachable) this._broken += 1;
    const delay = over ? null : this._delay(rejected, unreachable);
    if (over) this._stop(error.message, `gave up after ${this._failures} attempts`);
    else {
      this._timers.retry = setTimeout(() => this._connect(), /** @type {number} */ (delay) * 1000);
      this._enter(rejected ? "rejected" : "waiting", error.message, delay);
      this._rejectPending((entry) => entry.whenDown === "reject", "unsettled", "the connection fell before the ack");
    }
    if (wasUp) {
      this._guarded(() => this.onClose({ code, reason: error.message }));
      this._fire("close", { code, reason: error.message });
    } else this._error(error);
    // The timers of a hidden page run once a minute: the first attempt is made without one.
    const { document } = /** @type {any} */ (globalThis);
    const hidden = document?.visibilityState === "hidden" && wasUp && !rejected && !over && this._spread <= this.options.minDelay;
    if (hidden && mine === this._generation) this._connect();
  }

  /**
   * How long to wait for the next attempt. Where nothing answers attempts cost nobody anything, and stay equally dense.
   * @param {boolean} rejected
   * @param {boolean} unreachable
   */
  _delay(rejected, unreachable) {
    const { minDelay, maxDelay, random } = this.options;
    let share = 1;
    this._guarded(() => {
      const drawn = random();
      share = typeof drawn === "number" ? Math.min(Math.max(drawn || 0, 0), 1) : 1;
      return drawn;
    });
    if (rejected) return maxDelay * (0.8 + 0.4 * share);
    const offline = globalThis.navigator?.onLine === false && !/^(localhost|127\..*|\[::1\])$/.test(this.url.hostname);
    if (offline) return OFFLINE_SECONDS * (0.8 + 0.4 * share);
    const least = Math.max(minDelay, this._spread);
    if (unreachable) return least * (0.8 + 0.4 * share);
    return Math.max(Math.min(maxDelay, minDelay * 2 ** Math.min(this._broken - 1, 30)), this._spread) * share;
  }

  /** Nothing is tried any more. @param {string | null} reason @param {string} message */
  _stop(reason, message) {
    for (const [target, name, call] of this._around) target.removeEventListener(name, call);
    this._enter("stopped", reason, null);
    this._rejectPending(() => true, "unsettled", message);
  }

  /** End whatever connection or attempt there is; its late frames are not ours. @param {number | null} code @param {string} reason */
  _drop(code, reason) {
    this._generation += 1;
    for (const timer of Object.values(this._timers)) clearTimeout(timer);
    this._timers = {};
    this._attempt?.abort();
    this._attempt = null;
    this._parts.clear();
    for (const each of this._subscriptions) {
      each._begun = false;
      each._consumer?.begin(0);
    }
    const socket = this._socket;
    this._socket = null;
    // A state that nobody may act on: it is set before anything of the application is called.
    if (this.isUp) this.status.value = { ...this.status.value, state: "waiting" };
    if (this.links.value.size > 0) this.links._set(new Map());
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
    const entered = { state, attempts: this._failures, retrySeconds, reason };
    this.status._set(entered);
    this._fire("status", entered);
  }

  // The application's own functions, each guarded: its mistake costs nobody else anything.

  /** @param {LinkdError} error */
  _error(error) {
    this._guarded(() => this.onError(error), false);
    this._fire("error", error);
  }

  /** @param {string} name @param {any} detail */
  _fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {any} listener An event's: by default Node.js ends the program when it raises. */
  _wrap(listener) {
    if (typeof listener !== "function" && typeof listener !== "object") return listener;
    if (listener === null) return listener;
    const known = this._wrapped.get(listener);
    if (known) return known;
    const wrapped = (/** @type {any} */ event) =>
      this._guarded(() => (typeof listener === "function" ? listener.call(this, event) : listener.handleEvent(event)), event.type !== "error");
    this._wrapped.set(listener, wrapped);
    return wrapped;
  }

  /**
   * Call; log what goes wrong, also later where it returns a promise, and report it, unless reports are what fails: a
   * rejected `onError` that is called again for that would go round for ever.
   * @param {() => any} call
   * @param {boolean} [reports]
   */
  _guarded(call, reports = true) {
    const failed = (/** @type {any} */ error) => {
      if (typeof globalThis.reportError === "function") reportError(error);
      else console.error(error);
      if (reports) this._error(new LinkdError("application", `a function of the application failed: ${error}`));
    };
    try {
      const result = call();
      if (typeof result?.then === "function") result.then(undefined, failed);
    } catch (error) {
      failed(error);
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

/** @param {any} options @throws {TypeError} */
function checkOptions(options) {
  const isNumber = (/** @type {any} */ value) => typeof value === "number" && !Number.isNaN(value);
  for (const name of POSITIVE) {
    if (!isNumber(options[name]) || options[name] <= 0) throw new TypeError(`${name}: expected a number above 0`);
  }
  for (const name of NOT_NEGATIVE) {
    if (!isNumber(options[name]) || options[name] < 0) throw new TypeError(`${name}: expected seconds`);
  }
  for (const name of FUNCTIONS) {
    if (options[name] != null && typeof options[name] !== "function") throw new TypeError(`${name}: expected a function`);
  }
  if (options.key != null && (typeof options.key !== "string" || !/^[\x21-\x7e]+$/.test(options.key))) {
    throw new TypeError("key: expected the text of a key");
  }
  if (!["wait", "reject"].includes(options.whenDown)) throw new TypeError('whenDown: expected "wait" or "reject"');
}

/**
 * Return the node's address: the given one, or the root of where the page came from; in a frame without an address
 * of its own (`srcdoc`, `blob:`) that of the page around it.
 * @param {string | URL | undefined} given
 */
function address(given) {
  const { location, document } = /** @type {any} */ (globalThis);
  const base = given ?? [location?.href, document?.baseURI, location?.origin].find((each) => /^https?:/.test(each ?? ""));
  let url;
  try {
    url = given == null ? new URL("/", base) : new URL(given);
  } catch {
    throw new TypeError(`url: expected the node's, as http://HOST:PORT, got ${base}`);
  }
  if (!/^(https?|wss?):$/.test(url.protocol)) throw new TypeError(`url: expected http or https, got ${url.protocol}`);
  return url;
}

/**
 * Return what a function of the application returned; a promise is none of what may be returned.
 * @param {any} value @param {string} name @throws {TypeError}
 */
function awaited(value, name) {
  if (typeof value?.then !== "function") return value;
  value.then(undefined, () => {}); // else its rejection ends a Node.js program
  throw new TypeError(`${name}: expected a value, got a promise`);
}

/** @param {string} text */
function isWellFormed(text) {
  return !/\p{Surrogate}/u.test(text); // String.isWellFormed is not there before Chrome 111
}

/** @param {string} text @param {number} most Whether it has more bytes. */
function isLonger(text, most) {
  return text.length * 3 > most && (text.length > most || new TextEncoder().encode(text).length > most);
}

/**
 * Check that JSON keeps all of a value, as `JSON.stringify` does not.
 * @param {any} value
 * @param {number} depth
 * @throws {TypeError}
 */
function checkData(value, depth) {
  if (typeof value === "string") {
    if (!isWellFormed(value)) throw new TypeError("data: a text has half of a surrogate pair: was it cut inside an emoji?");
  } else if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new TypeError(`data: JSON has no ${value}`);
  } else if (typeof value === "object" && value !== null) {
    if (depth === 0) throw new TypeError(`data: expected JSON nested at most ${MOST_DEPTH} deep`);
    if (typeof value.toJSON === "function") return checkData(value.toJSON(""), depth);
    const prototype = Object.getPrototypeOf(value);
    if (Array.isArray(value)) for (const each of value) checkData(each, depth - 1);
    else if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) throw new TypeError("data: JSON has no bytes: encode them, as base64");
    else if (prototype !== null && Object.prototype.toString.call(value) !== "[object Object]") {
      throw new TypeError(`data: JSON has no ${Object.prototype.toString.call(value).slice(8, -1)}`);
    } else {
      for (const [name, each] of Object.entries(value)) {
        if (!isWellFormed(name)) throw new TypeError("data: a name has half of a surrogate pair");
        checkData(each, depth - 1);
      }
    }
  } else if (!["boolean", "undefined"].includes(typeof value) && value !== null) {
    throw new TypeError(`data: JSON has no ${typeof value}`);
  }
}

/** Seconds that a node announced, if it did. @param {any} value */
function seconds(value) {
  return typeof value === "number" && value > 0 ? Math.min(value, MOST_SPREAD_SECONDS) : 0;
}

/** Seconds that never step. */
function now() {
  return performance.now() / 1000;
}

/** @param {string} text */
function base64url(text) {
  const characters = Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte));
  return btoa(characters.join("")).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
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
