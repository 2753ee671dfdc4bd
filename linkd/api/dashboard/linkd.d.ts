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
export type Message = {
    channel: string;
    type: string | null;
    data: any;
    offset: number;
    origin: string | null;
    origin_offset?: number;
    headers: Record<string, string>;
    time?: string;
    id?: string | null;
    unreadable?: boolean;
};
export type State = "stopped" | "connecting" | "up" | "waiting" | "rejected";
export type Status = {
    state: State;
    attempts: number;
    retrySeconds: number | null;
    reason: string | null;
};
export type Options = {
    /**
     * The node, `http://HOST:PORT`, or `https://HOST/PATH/` behind a proxy that serves it
     * below a path; by default the root of where the page came from.
     */
    url?: string | URL;
    /**
     * A key of `[[api.key]]`.
     */
    key?: string;
    /**
     * Or: it brings a fresh token for every connect.
     * With neither, none is sent: the cookie session goes along, or the node asks for no key.
     */
    token?: () => string | null | Promise<string | null>;
    /**
     * The class to use where the platform has none, as that of `ws` in Node.js 20.
     */
    WebSocket?: any;
    /**
     * With it a page finds out when a node that it can't connect to is back.
     */
    fetch?: typeof fetch;
    /**
     * A ping goes out this often: 5.
     */
    pingInterval?: number;
    /**
     * A ping that got no answer for so long, and nothing heard for `pingInterval +
     * pingTimeout`: the connection is dropped: 2.
     */
    pingTimeout?: number;
    /**
     * For token, connect, upgrade and the node's first message together: 10.
     */
    connectTimeout?: number;
    /**
     * Attempts are that far apart while nothing answers; where something does, the backoff
     * starts here: 0.5. A node with many pages spreads their return over more seconds.
     */
    minDelay?: number;
    /**
     * The backoff never exceeds this: 15.
     */
    maxDelay?: number;
    /**
     * Up for so long, the backoff starts again from `minDelay`: 5.
     */
    stableAfter?: number;
    /**
     * Give up after so many failures in a row; by default never.
     */
    maxAttempts?: number;
    /**
     * What `publish` does while the connection is down: "wait".
     */
    whenDown?: "wait" | "reject";
    /**
     * Publishes that may wait for their ack: 10000.
     */
    maxPending?: number;
    /**
     * Hear of every change of a link; see `links`.
     */
    status?: boolean;
    /**
     * Hear who joins and leaves, as messages of type `joined`, `left` and `present` to `on`.
     */
    presence?: boolean;
    /**
     * Default JSON.stringify.
     */
    encode?: (frame: any) => string;
    /**
     * Default JSON.parse.
     */
    decode?: (text: string) => any;
    /**
     * For tests: [0, 1).
     */
    random?: () => number;
};
/** What the node refused, or what could not be done. `code` is one word, as `log-full`, `down`, `unsettled`. */
export declare class LinkdError extends Error {
    code: string;
    id: string | null;
    /**
     * @param {string} code
     * @param {string} message
     * @param {string | null} [id] The id of the publish concerned.
     */
    constructor(code: string, message: string, id?: string | null);
}
/**
 * A value that changes: an observer gets the present one at once, then each new one.
 * @template T
 */
export declare class Observable<T> {
    value: T;
    /** @param {T} value @param {(call: () => any) => void} [guarded] Calls an observer, whose mistake is its own. */
    constructor(value: T, guarded?: (call: () => any) => void);
    /**
     * @param {((value: T) => void) | {next?: (value: T) => void}} observer
     * @returns {{unsubscribe: () => void}}
     */
    subscribe(observer: ((value: T) => void) | {
        next?: (value: T) => void;
    }): {
        unsubscribe: () => void;
    };
    /** What RxJS' `from` looks for. */
    ["@@observable"](): this;
}
/** One pattern that is followed, over a stream of its own. Made by `Linkd.subscribe`. */
export declare class Subscription {
    node: Linkd;
    pattern: string;
    call: ((message: Message) => void) | undefined;
    /** Everything below was seen; undefined until the node has sent where it begins. @type {number | undefined} */
    next: number | undefined;
    /**
     * @param {Linkd} node
     * @param {string} pattern
     * @param {((message: Message) => void) | undefined} call
     * @param {number | "earliest" | undefined} from
     * @param {number} serial
     */
    constructor(node: Linkd, pattern: string, call: ((message: Message) => void) | undefined, from: number | "earliest" | undefined, serial: number);
    /** Nothing more comes. */
    unsubscribe(): void;
}
/**
 * A lasting connection to one node. Subclass it for the hooks `onOpen`, `onMessage`, `onClose` and `onError`.
 * Fires the events `status`, `link`, `open`, `close`, `gap` and `error`, each a CustomEvent with its value in `detail`.
 */
export declare class Linkd extends EventTarget {
    /** @type {any} */
    options: any;
    url: URL;
    WebSocket: any;
    /** @type {Observable<Status>} */
    status: Observable<Status>;
    /** What `status: true` reports of each link, by peer; empty while the connection is down. @type {Observable<Map<string, any>>} */
    links: Observable<Map<string, any>>;
    /** What the node reported of itself: `node`, `version`, `log`, `epoch`, `next`, `max_body_bytes`. @type {any} */
    info: any;
    /** @param {Options} [options] */
    constructor(options?: Options);
    /** The connection is up; subscriptions and unsettled publishes are about to be sent. */
    onOpen(): void;
    /**
     * A message came for a subscription, which has not seen it yet. Return false to keep it from that, and from the
     * calls by type.
     * @param {Message} _message
     * @returns {boolean | void}
     */
    onMessage(_message: Message): boolean | void;
    /** The connection is gone. @param {{code: number | null, reason: string}} _why */
    onClose(_why: {
        code: number | null;
        reason: string;
    }): void;
    /** Something was refused or failed. @param {LinkdError} _error */
    onError(_error: LinkdError): void;
    /** Connect, and stay connected until `close`. Calling it again changes nothing. */
    open(): this;
    /** Disconnect and stay so. What still waits for its ack is rejected as `unsettled`. */
    close(): void;
    /** Try again at once if waiting to. */
    kick(): void;
    /**
     * Have `call(data, message)` called for each message of `type`. Added twice, it is called once.
     * @param {string} type
     * @param {(data: any, message: Message) => void} call
     * @returns {() => void} what takes it off again
     */
    on(type: string, call: (data: any, message: Message) => void): () => void;
    /**
     * @param {string} type
     * @param {(data: any, message: Message) => void} [call] By default all of that type.
     */
    off(type: string, call?: (data: any, message: Message) => void): void;
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
    subscribe(pattern: string, call?: ((message: Message) => any) | null, options?: {
        from?: number | "earliest" | "latest" | null;
        consumer?: string | null;
    }): Subscription;
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
    publish(channel: string, data: any, options?: {
        type?: string;
        id?: string | number | null;
        headers?: Record<string, string>;
        whenDown?: "wait" | "reject";
        timeout?: number;
    }): Promise<{
        id: string;
        offset: number;
    }>;
    /** Send any frame as it is, unless the connection is down. @param {any} frame @returns {boolean} whether it was sent */
    send(frame: any): boolean;
    /** Whether the connection to the node is up. */
    get isUp(): boolean;
    /** @param {string} type @param {any} listener @param {any} [options] */
    addEventListener(type: string, listener: any, options?: any): void;
    /** @param {string} type @param {any} listener @param {any} [options] */
    removeEventListener(type: string, listener: any, options?: any): void;
}
/**
 * Make a `Linkd` and open it.
 * @param {Options} [options]
 */
export declare function connect(options?: Options): Linkd;
