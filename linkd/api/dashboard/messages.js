// @ts-check
// A box to publish from, locked while the chosen link is down, and what arrives.
import { byId, make, setText } from "./dom.js";
import { clock, stateWord } from "./format.js";

const SHOWN = 200;

export class MessageBox {
  /** @param {import("./linkd.js").Linkd} node */
  constructor(node) {
    this.node = node;
    this.section = byId("messages");
    this.box = byId("box");
    this.choice = byId("message-link");
    this.answer = byId("message-answer");
    this.list = byId("arrived");
    this.list.append(make("li", { className: "none" }, "Nothing has arrived since this page opened."));
    /** @type {any[]} */
    this.links = [];
    byId("message").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this._publish();
    });
    byId("message-body").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this._publish();
    });
    this.choice.addEventListener("change", () => this.judge());
    byId("message-pattern").addEventListener("change", () => this._follow());
    node.addEventListener("error", (/** @type {any} */ event) => {
      if (event.detail.code === "channel-refused") this._say(event.detail.message, "bad");
    });
    this._follow();
  }

  /** @param {any[]} links as in /v1/status */
  show(links) {
    this.links = links;
    const peers = links.map(({ peer }) => peer);
    const listed = [...this.choice.options].map(({ value }) => value);
    if (peers.join("\n") !== listed.join("\n")) {
      const chosen = this.choice.value;
      this.choice.replaceChildren(...peers.map((peer) => make("option", { value: peer }, peer)));
      if (peers.includes(chosen)) this.choice.value = chosen;
    }
    this.judge();
  }

  /** Lock or unlock: open only while we hear the node and the chosen link is up. */
  judge() {
    const link = this.links.find(({ peer }) => peer === this.choice.value);
    const reason = !this.node.isUp
      ? "locked: no connection to the node"
      : !link
        ? "locked: no link"
        : link.state !== "up"
          ? `locked: ${link.peer} is ${stateWord(link.state)}`
          : null;
    this.box.disabled = reason !== null;
    this.section.dataset.locked = String(reason !== null);
    setText(byId("lock"), reason ?? "open");
    byId("lock-hint").hidden = !(this.node.isUp && link && link.state !== "up");
  }

  async _publish() {
    if (this.box.disabled) return;
    const channel = byId("message-channel").value.trim();
    const type = byId("message-type").value.trim() || "message";
    this._say("publishing");
    try {
      const { offset } = await this.node.publish(channel, parsed(byId("message-body").value), { type, whenDown: "reject", timeout: 10 });
      this._say(offset > 0 ? `on disk, offset ${offset}` : "sent (volatile)");
    } catch (error) {
      this._say(/** @type {Error} */ (error).message, "bad");
    }
  }

  /** @param {string} text @param {string} [tone] */
  _say(text, tone = "") {
    this.answer.dataset.tone = tone;
    setText(this.answer, text);
  }

  _follow() {
    this.subscription?.unsubscribe();
    const pattern = byId("message-pattern").value.trim();
    if (pattern) this.subscription = this.node.subscribe(pattern, (message) => this._arrived(message));
  }

  /** @param {import("./linkd.js").Message} message */
  _arrived(message) {
    if (this.list.firstElementChild?.className === "none") this.list.replaceChildren();
    const at = message.time ? Date.parse(message.time) : Date.now();
    const about = [message.channel, message.type].filter(Boolean).join(" · ");
    const from = [message.origin, message.offset ? `#${message.offset}` : "volatile"].filter(Boolean).join(" ");
    const { data, unreadable } = message;
    const body = unreadable ? `(unreadable: ${data.length} bytes)` : typeof data === "string" ? data : data instanceof Uint8Array ? `${data.length} bytes` : JSON.stringify(data);
    this.list.prepend(
      make("li", {}, make("time", {}, clock(at)), make("span", {}, about), make("span", { className: "quiet" }, from), make("span", { className: "mono" }, (body ?? "").slice(0, 4000))),
    );
    while (this.list.childElementCount > SHOWN) this.list.lastElementChild.remove();
  }
}

/** JSON where it is JSON, else the text itself. @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
