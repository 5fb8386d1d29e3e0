// A chat session over a connection that may break at any time.

import { Backoff, finalReason, retryAfter } from "./backoff.js";
import { Order } from "./order.js";
import { Outbox } from "./outbox.js";

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

/**
 * Events (`chat.on(name, listener)`, which returns a function that removes it):
 * `state {state, reason?, retryInMs?}`, `message`, `outbox` (an entry whose status has changed), `typing` (a Map),
 * `presence {users, totals, events}`, `read {user_id, up_to}`, `gap {reason}`, `token {error}`, `frame` (each frame as
 * it came).
 */
export class LiveChat {
  #options;
  #listeners = new Map();
  #state = { state: "offline", reason: "not_started" };
  #socket;
  #timers = new Map();
  #backoff;
  #outbox;
  #order = new Order();
  /** What is passed as `since`: the newest message, or a cursor. */
  #since;
  #token;
  #isTokenNew = false;
  #heardAt = 0;
  #requests = 0;
  #typing = { sentAt: 0, others: new Map() };
  #sent = [];
  #reads = new Map();
  #users = {};
  #unsubscribe = [];

  constructor(options) {
    this.#options = { ...DEFAULTS, ...options };
    const { url, session, user, type, WebSocket, fetch, storage, random, now } = this.#options;
    this.#options.now = now ?? Date.now;
    this.#options.WebSocket = WebSocket ?? globalThis.WebSocket;
    this.#options.fetch = fetch ?? globalThis.fetch?.bind(globalThis);
    const base = String(url ?? globalThis.location?.origin).replace(/\/+$/, "").replace(/^http/, "ws");
    const path = [session, user, type].map((part) => encodeURIComponent(part)).join("/");
    this.#options.address = `${base}/ws/${path}`;
    this.#backoff = new Backoff(random);
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
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /** Connects, and stays connected until `stop`. */
  start() {
    if (this.#socket || this.#timers.has("connect")) return this;
    this.#watchPage();
    this.#backoff.reset();
    // A token that was refused is not tried again.
    this.#token = undefined;
    this.#isTokenNew = false;
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
  send(message, { message_type, attachments } = {}) {
    const entry = {
      client_message_id: newId(),
      message: String(message ?? ""),
      ...(message_type && { message_type }),
      ...(attachments?.length && { attachments }),
      created: this.#options.now(),
      status: "sending",
    };
    const size = utf8Length(JSON.stringify(messageFrame(entry)));
    const reason = !entry.message && !entry.attachments ? "empty" : size > this.#options.maxMessageBytes && "too_big";
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
    this.#after("typing", TYPING_ENDS_MS, () => this.stopTyping());
  }

  stopTyping() {
    this.#cancel("typing");
    if (this.#typing.sentAt) this.#transmit({ type: "typing_stop" });
    this.#typing.sentAt = 0;
  }

  /** The user has read everything up to this message. */
  read(messageId) {
    this.#lastRead = messageId;
    this.#transmit({ type: "message_read", data: { up_to: messageId } });
  }
  #lastRead;

  // The connection.

  async #connect() {
    this.#cancel("connect");
    const { address, history, WebSocket, timeoutMs } = this.#options;
    this.#become("connecting");
    const attempt = (this.#attempt = Symbol());
    const token = await this.#newToken();
    if (attempt !== this.#attempt) return;
    if (token === undefined) return this.#pause(undefined, 0, "token");
    const query = this.#since
      ? `?since=${encodeURIComponent(this.#since.id)}${this.#since.time ? `&since_time=${encodeURIComponent(this.#since.time)}` : ""}`
      : history > 0
        ? `?rewind=${Math.min(history, 100)}`
        : "";
    let socket;
    try {
      socket = new WebSocket(address + query, token ? ["livechat.v1", `livechat.bearer.${token}`] : ["livechat.v1"]);
    } catch (error) {
      return this.#end("bad_address", error);
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
        this.#cancel("greeting");
        this.#greeted(query !== "");
      }
      this.#handle(frame);
    });
    socket.onclose = of(({ code }) => (isGreeted ? this.#closed(code) : this.#refused(query, token)));
    // Not all implementations report the close of what was never open.
    socket.onerror = of(() => isGreeted || this.#refused(query, token));
    this.#after("greeting", timeoutMs, () => this.#drop());
  }
  #attempt;

  #greeted(isReplayed) {
    this.#backoff.reset();
    this.#isTokenNew = false;
    this.#become(isReplayed ? "resuming" : "live");
    this.#watch();
    if (this.#lastRead) this.#transmit({ type: "message_read", data: { up_to: this.#lastRead } });
    this.#flush();
  }

  /** The browser does not say why a handshake failed: a plain request for the same path does. */
  async #refused(query, token) {
    this.#forget();
    const attempt = (this.#attempt = Symbol());
    const { address, fetch, timeoutMs } = this.#options;
    let answer;
    try {
      answer = await fetch(address.replace(/^ws/, "http") + query, {
        headers: token ? { Authorization: `Bearer ${token}` } : {},
        cache: "no-store",
        signal: AbortSignal.timeout(timeoutMs),
      });
    } catch {
      // No answer at all: the network.
    }
    if (attempt !== this.#attempt) return;
    const status = answer?.status;
    const reason = status && (await answer.json().catch(() => undefined))?.error;
    if (attempt !== this.#attempt) return;
    if (status === 401 && this.#options.token && !this.#isTokenNew) {
      this.#token = undefined;
      this.#isTokenNew = true;
      return this.#connect();
    }
    if (status === 429 || status >= 500) {
      return this.#pause(undefined, retryAfter(answer.headers.get("Retry-After"), this.#options.now()), reason);
    }
    // 426 means that nothing but the upgrade was missing.
    if (status >= 400 && status !== 426) return this.#end(reason ?? `http_${status}`);
    this.#pause(undefined, 0, status ? "handshake" : "network");
  }

  #closed(code) {
    this.#forget();
    const reason = finalReason(code);
    if (reason) return this.#end(reason);
    if (code === 4401) {
      if (!this.#options.token || this.#isTokenNew) return this.#end("unauthenticated");
      this.#token = undefined;
      this.#isTokenNew = true;
      return this.#connect();
    }
    this.#pause(code, 0, code === 1006 ? "network" : `closed_${code}`);
  }

  #pause(code, retryAfterMs, reason) {
    this.#forget();
    const retryInMs = this.#backoff.next(code, retryAfterMs);
    this.#become("offline", reason, Math.round(retryInMs));
    this.#after("connect", retryInMs, () => this.#connect());
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
    for (const timer of ["greeting", "ping", "pong", "outbox", "typing"]) this.#cancel(timer);
    this.#typing.sentAt = 0;
    for (const user of [...this.#typing.others.keys()]) this.#clearTyping(user);
    this.#outbox.disconnected();
    this.#flush();
  }

  #end(reason, error) {
    const socket = this.#socket;
    this.#forget();
    for (const timer of [...this.#timers.keys()]) this.#cancel(timer);
    for (const remove of this.#unsubscribe.splice(0)) remove();
    socket?.close(1000);
    this.#become("stopped", reason, undefined, error);
  }

  #become(state, reason, retryInMs, error) {
    this.#state = { state, ...(reason && { reason }), ...(retryInMs !== undefined && { retryInMs }), ...(error && { error }) };
    this.#emit("state", this.#state);
  }

  // A half-dead connection shows only by silence.

  #watch() {
    const { pingMs } = this.#options;
    this.#after("ping", pingMs, () => this.#ping());
  }

  #ping() {
    const asked = this.#options.now();
    this.#transmit({ type: "ping", request_id: `ping-${++this.#requests}` });
    // The first ping without an answer counts, not the last.
    if (!this.#timers.has("pong")) {
      this.#after("pong", this.#options.timeoutMs, () => this.#heardAt < asked && this.#drop("silence"));
    }
    this.#watch();
  }

  #watchPage() {
    const listen = (target, name, listener) => {
      target?.addEventListener?.(name, listener);
      this.#unsubscribe.push(() => target?.removeEventListener?.(name, listener));
    };
    const { page = globalThis.window, document = globalThis.document } = this.#options;
    listen(page, "online", () => this.retry());
    // Without a network there is nothing to wait for; with a wrong report the next attempt comes all the same.
    listen(page, "offline", () => this.#socket && this.#drop("network"));
    // A page with a connection can't be kept for "back".
    listen(page, "pagehide", () => this.#socket && this.#drop("hidden"));
    listen(page, "pageshow", (event) => event.persisted && this.retry());
    const awake = () => (this.#socket?.readyState === OPEN ? this.#ping() : this.retry());
    listen(document, "visibilitychange", () => document.visibilityState === "visible" && awake());
    listen(document, "resume", awake);
  }

  // Frames.

  #handle(frame) {
    const { type, data = {} } = frame;
    if (typeof data.cursor === "string") this.#since = { id: data.cursor };
    switch (type) {
      case "new_message":
        this.#message(data);
        break;
      case "message_sent":
        this.#outbox.sent(data.client_message_id, { message_id: data.message_id, timestamp: data.timestamp });
        this.#flush();
        break;
      case "error":
        if (data.client_message_id) this.#outbox.refused(data.client_message_id, data.code, data.retryable === true);
        if (data.code === "invalid_token") this.#emit("token", { error: frame.error });
        this.#flush();
        break;
      case "resumed":
        if (data.recovered === false) this.#emit("gap", { reason: data.reason });
        this.#become("live");
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
        this.#renew();
        break;
    }
    this.#emit("frame", frame);
    if (type && type !== "frame" && !BUILT_IN.has(type)) this.#emit(type, data, frame);
  }

  #message(message) {
    const { message_id, client_message_id, sender_id, timestamp } = message;
    const id = String(message_id);
    this.#since = { id, time: timestamp };
    const isOwn = sender_id === this.#options.user;
    if (isOwn && client_message_id) this.#outbox.sent(client_message_id, { message_id: id, timestamp });
    if (!this.#order.add(id)) return;
    this.#clearTyping(sender_id);
    this.#emit("message", message, { isOwn });
  }

  /** An entry has left the outbox. */
  #settled(entry) {
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
    this.#after(timer, TYPING_SHOWN_MS, () => this.#clearTyping(user_id));
    this.#emit("typing", this.#typing.others);
  }

  #clearTyping(userId) {
    this.#cancel(`typing:${userId}`);
    if (this.#typing.others.delete(userId)) this.#emit("typing", this.#typing.others);
  }

  #presence({ connection_status = {}, events = [] }) {
    this.#users = connection_status.users ?? {};
    for (const { event_type, event_user_id } of events) {
      if (event_type === "user_disconnected") this.#clearTyping(event_user_id);
    }
    this.#emit("presence", { ...connection_status, events });
  }

  // Sending.

  #flush() {
    this.#cancel("outbox");
    const isOpen = this.#socket && (this.#state.state === "live" || this.#state.state === "resuming");
    for (const entry of isOpen ? this.#outbox.take() : []) this.#transmit(messageFrame(entry));
    if (!isOpen) this.#outbox.expire();
    const due = this.#outbox.due(isOpen);
    if (due !== undefined) this.#after("outbox", due, () => this.#flush());
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

  /** The token to connect with; "" without one, undefined if there is none at the moment. */
  async #newToken() {
    const { token } = this.#options;
    if (token === undefined) return "";
    if (typeof token !== "function") return token;
    try {
      this.#token ??= await token();
      return this.#token || undefined;
    } catch (error) {
      this.#emit("token", { error });
      return undefined;
    }
  }

  async #renew() {
    const socket = this.#socket;
    this.#token = undefined;
    const token = await this.#newToken();
    if (!token || socket !== this.#socket) return;
    this.#transmit({ type: "auth", data: { token }, request_id: `auth-${++this.#requests}` });
  }

  // Timers and listeners.

  #after(name, ms, run) {
    this.#cancel(name);
    const timer = setTimeout(() => {
      this.#timers.delete(name);
      run();
    }, ms);
    this.#timers.set(name, timer);
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  /** A listener's error is the application's, and does not stop the chat. */
  #emit(name, ...values) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(...values);
      } catch (error) {
        console.error(error);
      }
    }
  }
}

const BUILT_IN = new Set(["state", "message", "outbox", "typing", "presence", "read", "gap", "token"]);

const messageFrame = ({ client_message_id, message, message_type, attachments }) => ({
  type: "send_message",
  data: { message, ...(message_type && { message_type }), ...(attachments && { attachments }), client_message_id },
});

function parse(data) {
  try {
    const frame = JSON.parse(data);
    return frame && typeof frame === "object" ? frame : undefined;
  } catch {
    return undefined;
  }
}

const utf8Length = (text) => new TextEncoder().encode(text).length;

const newId = () =>
  globalThis.crypto?.randomUUID?.() ??
  Array.from({ length: 4 }, () => Math.random().toString(36).slice(2, 10)).join("");

/** It may be forbidden. */
function sessionStorageOrNone() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}
