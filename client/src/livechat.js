// A chat session over a connection that may break at any time.

import { Backoff, finalReason } from "./backoff.js";
import { Emitter } from "./emitter.js";
import { messageFrame, newId, parse, sizeOf } from "./frames.js";
import { Order } from "./order.js";
import { Outbox } from "./outbox.js";
import { sessionStorageOrNone, watchPage } from "./page.js";
import { askWhy } from "./refusal.js";
import { Timers } from "./timers.js";
import { Tokens, isToken } from "./tokens.js";

const DEFAULTS = {
  history: 50,
  pingMs: 20_000,
  timeoutMs: 10_000,
  maxMessageBytes: 65_536,
  dedupWindowMs: 300_000,
};
const OPEN = 1;
/** A repeated start keeps the others' indicators; they end after 30 s. */
const TYPING_REPEAT_MS = 10_000;
const TYPING_ENDS_MS = 5_000;
const TYPING_SHOWN_MS = 32_000;
/** How long before the end of the server's memory of repeats a message is given up. */
const DEDUP_MARGIN_MS = 60_000;
const MOST_SENT = 1_000;
const MOST_EXPIRED = 100;
/** The least time between two receipts: a replay of hundreds of messages is read at once. */
const READ_PAUSE_MS = 1_000;
/** A connection that lasts so long ends a series of failures. */
const STABLE_MS = 10_000;

/**
 * Events (`chat.on(name, listener)`, which returns a function that removes it):
 * `state {state, reason?, detail?, retryInMs?}`, `message`, `outbox` (an entry whose status has changed), `typing` (a Map),
 * `presence {users, totals, events}`, `read {user_id, up_to}`, `gap {reason}`, `token {error}`, `frame` (each frame as
 * it came).
 */
export class LiveChat {
  #options;
  #events = new Emitter();
  #state = { state: "offline", reason: "not_started" };
  #socket;
  #timers = new Timers();
  #backoff;
  #outbox;
  #order = new Order();
  /** What is passed as `since`: the newest message, or a cursor. */
  #since;
  #tokens;
  #heardAt = 0;
  #requests = 0;
  #typing = { sentAt: 0, others: new Map() };
  #sent = [];
  /** Given up, and not known to be lost. */
  #expired = new Map();
  #reads = new Map();
  #users = {};
  #unwatchPage = () => {};
  /** In production without tokens, nobody is shown what was said before. */
  #isHistoryOffered = true;
  /** Until then the server wants no attempt. */
  #notBefore = 0;
  #lastRead;
  #toldRead;
  #readRequest;

  constructor(options) {
    this.#options = { ...DEFAULTS, ...options };
    const { url, session, user, type, WebSocket, fetch, storage, random, now } = this.#options;
    this.#options.now = now ?? Date.now;
    this.#options.WebSocket = WebSocket === undefined ? globalThis.WebSocket : WebSocket;
    this.#options.fetch = fetch ?? globalThis.fetch?.bind(globalThis);
    const base = String(url ?? globalThis.location?.origin).replace(/\/+$/, "").replace(/^http/, "ws");
    const path = [session, user, type].map((part) => encodeURIComponent(part)).join("/");
    this.#options.address = `${base}/ws/${path}`;
    this.#backoff = new Backoff(random);
    this.#tokens = new Tokens(this.#options.token, this.#options.now);
    this.#outbox = new Outbox({
      storage: storage === undefined ? sessionStorageOrNone() : storage,
      key: `livechat:${session}:${user}`,
      windowMs: this.#options.dedupWindowMs - DEDUP_MARGIN_MS,
      now: this.#options.now,
      changed: (entry) => this.#settled(entry),
    });
  }

  /** `connecting`, `live`, `resuming`, `offline` or `stopped`, and why. */
  get state() {
    return this.#state;
  }

  /** Messages that are not confirmed yet. */
  get outbox() {
    return [...this.#outbox.entries];
  }

  /** Connected users by id; empty in sessions of more than 100. */
  get users() {
    return this.#users;
  }

  /** How far each user has read: user id to message id. */
  get reads() {
    return this.#reads;
  }

  on(name, listener) {
    return this.#events.on(name, listener);
  }

  /** Connects, and stays connected until `stop`. */
  start() {
    if (this.#socket || this.#timers.has("connect")) return this;
    const wake = () => this.#options.now() >= this.#notBefore && this.retry();
    this.#unwatchPage();
    this.#unwatchPage = watchPage(this.#options, {
      awake: () => (this.#socket?.readyState === OPEN ? this.#ping() : wake()),
      lost: () => this.#socket && this.#drop("network"),
      hidden: () => this.#socket && this.#drop("hidden"),
    });
    this.#backoff.reset();
    // A token that was refused is not tried again.
    this.#tokens.forget();
    this.#tokens.isNew = false;
    this.#connect();
    return this;
  }

  /** Closes the connection for good; `start` begins anew. The outbox is kept. */
  stop(reason = "stopped") {
    this.#end(reason);
    return this;
  }

  /** Connects now instead of after the pause. */
  retry() {
    if (this.#state.state === "offline" && !this.#socket) this.#connect();
    return this;
  }

  /**
   * Sends a message, now or when there is a connection. Returns its entry of the outbox, whose `status` is `sending`,
   * or `failed` with a `reason` if it can't be sent at all.
   */
  send(message, extra) {
    const { message_type, attachments } = extra ?? {};
    const entry = {
      client_message_id: newId(),
      message: String(message ?? ""),
      ...(message_type && { message_type }),
      ...(attachments?.length && { attachments }),
      created: this.#options.now(),
      status: "sending",
    };
    const size = sizeOf(messageFrame(entry));
    const isEmpty = !entry.message && !entry.attachments;
    const reason = isEmpty ? "empty" : size === undefined ? "invalid" : size > this.#options.maxMessageBytes && "too_big";
    if (reason) {
      Object.assign(entry, { status: "failed", reason });
    } else {
      this.#outbox.add(entry);
      this.#flush();
    }
    this.stopTyping();
    this.#emit("outbox", entry);
    return entry;
  }

  /** Gives up a message that is not confirmed. It may have been sent all the same. */
  discard(clientMessageId) {
    this.#outbox.remove(clientMessageId);
  }

  /** The user is typing: call it on each key, it sends little. */
  typing() {
    const now = this.#options.now();
    if (now - this.#typing.sentAt >= TYPING_REPEAT_MS && this.#transmit({ type: "typing_start" })) {
      this.#typing.sentAt = now;
    }
    this.#timers.after("typing", TYPING_ENDS_MS, () => this.stopTyping());
  }

  stopTyping() {
    this.#timers.cancel("typing");
    if (this.#typing.sentAt) this.#transmit({ type: "typing_stop" });
    this.#typing.sentAt = 0;
  }

  /** The user has read everything up to this message. Call it as often as you like: it sends little, and never goes back. */
  read(messageId) {
    const id = String(messageId);
    if (this.#lastRead !== undefined && this.#order.isUpTo(id, this.#lastRead)) return;
    this.#lastRead = id;
    this.#tellRead();
  }

  #tellRead() {
    const isDue = this.#lastRead !== undefined && this.#lastRead !== this.#toldRead;
    if (!isDue || this.#state.state !== "live" || this.#timers.has("read")) return;
    const request_id = `read-${++this.#requests}`;
    if (this.#transmit({ type: "message_read", request_id, data: { up_to: this.#lastRead } })) {
      [this.#toldRead, this.#readRequest] = [this.#lastRead, request_id];
    }
    this.#timers.after("read", READ_PAUSE_MS, () => this.#tellRead());
  }

  // The connection.

  async #connect() {
    this.#timers.cancel("connect");
    const { address, history, WebSocket, timeoutMs } = this.#options;
    if (typeof WebSocket !== "function") return this.#end("no_websocket");
    this.#become("connecting");
    const attempt = (this.#attempt = Symbol());
    const token = await this.#tokens.get().catch((error) => this.#emit("token", { error }));
    if (attempt !== this.#attempt) return;
    if (token === undefined) return this.#pause(undefined, 0, "token");
    if (token && !isToken(token)) return this.#end("bad_token");
    const query = this.#since
      ? `?since=${encodeURIComponent(this.#since.id)}${this.#since.time ? `&since_time=${encodeURIComponent(this.#since.time)}` : ""}`
      : history > 0 && this.#isHistoryOffered
        ? `?rewind=${Math.min(history, 100)}`
        : "";
    let socket;
    try {
      socket = new WebSocket(address + query, token ? ["livechat.v1", `livechat.bearer.${token}`] : ["livechat.v1"]);
    } catch (error) {
      return this.#end("bad_address", undefined, error);
    }
    this.#socket = socket;
    let isGreeted = false;
    const of = (handle) => (event) => socket === this.#socket && handle(event);
    socket.onmessage = of(({ data }) => {
      this.#heardAt = this.#options.now();
      const frame = parse(data);
      if (!frame) return;
      if (frame.type === "connection_established") {
        isGreeted = true;
        this.#timers.cancel("greeting");
        this.#greeted(query !== "");
      }
      this.#received(frame);
    });
    socket.onclose = of(({ code }) => (isGreeted ? this.#closed(code) : this.#refused(query, token)));
    // Not all implementations report the close of what was never open.
    socket.onerror = of(() => isGreeted || this.#refused(query, token));
    this.#timers.after("greeting", timeoutMs, () => this.#drop());
  }
  #attempt;

  #greeted(isReplayed) {
    this.#timers.after("stable", STABLE_MS, () => this.#backoff.reset());
    this.#notBefore = 0;
    this.#tokens.isNew = false;
    // What the last connection was told may not have arrived.
    this.#toldRead = undefined;
    this.#watch();
    if (isReplayed) this.#become("resuming");
    else this.#live();
    this.#flush();
  }

  #live() {
    this.#become("live");
    this.#tellRead();
    this.#flush();
  }

  async #refused(query, token) {
    this.#forget();
    const attempt = (this.#attempt = Symbol());
    const { status, reason, detail, retryAfterMs, isFinal } = await askWhy(this.#options.address + query, token, this.#options);
    if (attempt !== this.#attempt) return;
    if (status === 401 && this.#renewsAfterRefusal()) return this.#connect();
    if (status === 403 && !token && query.startsWith("?rewind")) {
      this.#isHistoryOffered = false;
      this.#emit("gap", { reason: "not_offered" });
      return this.#connect();
    }
    if (isFinal) return this.#end(reason, detail);
    this.#pause(undefined, retryAfterMs ?? 0, reason, detail);
  }

  /** Whether another token may do; it is asked for by the next attempt. */
  #renewsAfterRefusal() {
    if (!this.#tokens.areUsed || this.#tokens.isNew) return false;
    this.#tokens.forget();
    return (this.#tokens.isNew = true);
  }

  #closed(code) {
    this.#forget();
    const reason = finalReason(code);
    if (reason) return this.#end(reason);
    if (code === 4401) return this.#renewsAfterRefusal() ? this.#connect() : this.#end("unauthenticated");
    this.#pause(code, 0, code === 1006 ? "network" : `closed_${code}`);
  }

  #pause(code, retryAfterMs, reason, detail) {
    this.#forget();
    const retryInMs = this.#backoff.next(code, retryAfterMs);
    this.#notBefore = this.#options.now() + retryAfterMs;
    this.#become("offline", { reason, detail, retryInMs: Math.round(retryInMs) });
    this.#timers.after("connect", retryInMs, () => this.#connect());
  }

  /** Closes a connection that is dead, or not wanted any more. */
  #drop(reason) {
    const socket = this.#socket;
    this.#forget();
    socket?.close(1000);
    if (this.#state.state !== "stopped") this.#pause(undefined, 0, reason ?? "timeout");
  }

  #forget() {
    this.#socket = undefined;
    this.#attempt = undefined;
    this.#timers.cancel("greeting", "ping", "pong", "outbox", "typing", "read", "renew", "stable");
    this.#typing.sentAt = 0;
    for (const user of [...this.#typing.others.keys()]) this.#clearTyping(user);
    this.#outbox.disconnected();
    this.#flush();
  }

  #end(reason, detail, error) {
    const socket = this.#socket;
    this.#forget();
    // What can't be sent any more is given up in time, unless the application does not look any more.
    this.#timers.cancelAll(reason === "stopped" ? undefined : "outbox");
    this.#unwatchPage();
    socket?.close(1000);
    this.#become("stopped", { reason, detail, error });
  }

  #become(state, about = {}) {
    const known = Object.entries(about).filter(([, value]) => value !== undefined);
    this.#state = { state, ...Object.fromEntries(known) };
    this.#emit("state", this.#state);
  }

  // A half-dead connection shows only by silence.

  #watch() {
    const { pingMs } = this.#options;
    this.#timers.after("ping", pingMs, () => this.#ping());
  }

  #ping() {
    const asked = this.#options.now();
    this.#transmit({ type: "ping", request_id: `ping-${++this.#requests}` });
    // The first ping without an answer counts, not the last.
    if (!this.#timers.has("pong")) {
      this.#timers.after("pong", this.#options.timeoutMs, () => this.#heardAt < asked && this.#drop("silence"));
    }
    this.#watch();
  }

  // Frames.

  /** Whatever other services have written: nothing is thrown into the page. */
  #received(frame) {
    const { type } = frame;
    const data = frame.data && typeof frame.data === "object" ? frame.data : {};
    try {
      this.#handle(frame, data);
    } catch (error) {
      console.error(error);
    }
    this.#emit("frame", frame);
    if (typeof type === "string" && type !== "frame" && !BUILT_IN.has(type)) this.#emit(type, frame.data, frame);
  }

  #handle(frame, data) {
    const { type } = frame;
    if (typeof data.cursor === "string") this.#since = { id: data.cursor };
    switch (type) {
      case "new_message":
        this.#message(data);
        break;
      case "message_sent":
        this.#confirmed(data.client_message_id, { message_id: data.message_id, timestamp: data.timestamp });
        this.#flush();
        break;
      case "error":
        if (data.client_message_id) this.#outbox.refused(data.client_message_id, data.code, data.retryable === true);
        if (frame.request_id === this.#readRequest && data.retryable === true) this.#toldRead = undefined;
        if (data.code === "invalid_token") this.#emit("token", { error: frame.error });
        this.#flush();
        break;
      case "resumed":
        if (data.recovered === false) this.#emit("gap", { reason: data.reason });
        this.#live();
        break;
      case "typing_indicator":
        this.#showTyping(data);
        break;
      case "connection_status_update":
        this.#presence(data);
        break;
      case "read_receipt":
        this.#showRead(data.user_id, data.up_to);
        break;
      case "read_state":
        for (const [user, upTo] of Object.entries(data.read ?? {})) this.#showRead(user, upTo);
        break;
      case "token_expiring":
        this.#timers.after("renew", this.#tokens.wait(data.expires_at), () => this.#renew(data.expires_at));
        break;
    }
  }

  #message(message) {
    const { message_id, client_message_id, sender_id, timestamp } = message;
    const isOwn = sender_id === this.#options.user;
    // Other services may write messages without an id: those are nothing to come back with.
    if (message_id !== undefined && message_id !== null) {
      const id = String(message_id);
      this.#since = { id, time: timestamp };
      if (isOwn && client_message_id) this.#confirmed(client_message_id, { message_id: id, timestamp });
      if (!this.#order.add(id)) return;
    }
    this.#clearTyping(sender_id);
    this.#emit("message", message, { isOwn });
  }

  /** The log has a message of one's own, maybe one that was given up. */
  #confirmed(id, fields) {
    this.#outbox.sent(id, fields);
    const given = this.#expired.get(id);
    if (!given) return;
    this.#expired.delete(id);
    delete given.reason;
    this.#settled(Object.assign(given, fields, { status: "sent" }));
  }

  /** An entry has left the outbox. */
  #settled(entry) {
    if (entry.reason === "expired") {
      this.#expired.set(entry.client_message_id, entry);
      if (this.#expired.size > MOST_EXPIRED) this.#expired.delete(this.#expired.keys().next().value);
    }
    if (entry.status === "sent") {
      this.#sent.push(entry);
      this.#sent.splice(0, this.#sent.length - MOST_SENT);
      this.#markRead();
    }
    this.#emit("outbox", entry);
  }

  #showRead(userId, upTo) {
    this.#reads.set(userId, upTo);
    this.#emit("read", { user_id: userId, up_to: upTo });
    this.#markRead();
  }

  /** Own messages that somebody else has read. */
  #markRead() {
    const upTo = [...this.#reads].filter(([user]) => user !== this.#options.user).map(([, id]) => id);
    const isRead = (entry) => upTo.some((id) => this.#order.isUpTo(entry.message_id, id));
    const read = this.#sent.filter(isRead);
    this.#sent = this.#sent.filter((entry) => !read.includes(entry));
    for (const entry of read) this.#emit("outbox", Object.assign(entry, { status: "read" }));
  }

  #showTyping({ user_id, is_typing, sender_type }) {
    const timer = `typing:${user_id}`;
    if (!is_typing) return this.#clearTyping(user_id);
    this.#typing.others.set(user_id, sender_type);
    this.#timers.after(timer, TYPING_SHOWN_MS, () => this.#clearTyping(user_id));
    this.#emit("typing", this.#typing.others);
  }

  #clearTyping(userId) {
    this.#timers.cancel(`typing:${userId}`);
    if (this.#typing.others.delete(userId)) this.#emit("typing", this.#typing.others);
  }

  #presence(data) {
    const connection_status = data.connection_status ?? {};
    const events = data.events ?? [];
    this.#users = connection_status.users ?? {};
    for (const { event_type, event_user_id } of events) {
      if (event_type === "user_disconnected") this.#clearTyping(event_user_id);
    }
    this.#emit("presence", { ...connection_status, events });
  }

  // Sending.

  #flush() {
    this.#timers.cancel("outbox");
    const { state } = this.#state;
    // What an earlier page has left may be in the log: the replay tells.
    const isOpen = this.#socket && (state === "live" || (state === "resuming" && !this.#outbox.isFromBefore));
    for (const entry of isOpen ? this.#outbox.take() : []) this.#transmit(messageFrame(entry));
    if (!isOpen) this.#outbox.expire();
    const due = this.#outbox.due(isOpen);
    if (due !== undefined) this.#timers.after("outbox", due, () => this.#flush());
  }

  #transmit(frame) {
    if (this.#socket?.readyState !== OPEN) return false;
    try {
      this.#socket.send(JSON.stringify(frame));
    } catch {
      return false;
    }
    return true;
  }

  // Tokens.

  async #renew(expiresAt) {
    if (!this.#tokens.canChange) return;
    const socket = this.#socket;
    const token = await this.#tokens.next().catch((error) => this.#emit("token", { error }));
    if (socket !== this.#socket || !socket) return;
    if (token && isToken(token)) {
      this.#transmit({ type: "auth", data: { token }, request_id: `auth-${++this.#requests}` });
      return;
    }
    // There is nothing newer yet.
    const left = Date.parse(expiresAt) - this.#options.now();
    if (left > 0) this.#timers.after("renew", this.#tokens.wait(expiresAt, true), () => this.#renew(expiresAt));
  }

  #emit(name, ...values) {
    this.#events.emit(name, ...values);
  }
}

const BUILT_IN = new Set(["state", "message", "outbox", "typing", "presence", "read", "gap", "token"]);
