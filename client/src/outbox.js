// Messages that the server has not confirmed yet. They are kept over reloads, in the order in which they were written.

const SEND_BURST = 20;
const SENDS_A_SECOND = 10;
const MOST_IN_FLIGHT = 10;
const RETRY_MS = 1_000;
const MOST_RETRY_MS = 10_000;

/**
 * An entry: `{client_message_id, message, message_type, attachments?, created, tried?, status, reason?}`.
 * `tried` is when it was first sent: from then on the server recognizes a repeat for DEDUP_WINDOW.
 */
export class Outbox {
  #entries = [];
  #storage;
  #key;
  #window;
  #now;
  #changed;
  /** Sent over this connection, and not answered. */
  #inFlight = new Set();
  #tokens = SEND_BURST;
  #refilled = 0;
  #pausedUntil = 0;
  #pause = RETRY_MS;
  /** What an earlier page has left. */
  #fromBefore = new Set();

  constructor({ storage, key, windowMs, now, changed }) {
    this.#storage = storage;
    this.#key = key;
    this.#window = windowMs;
    this.#now = now;
    this.#changed = changed;
    this.#refilled = now();
    this.#load();
  }

  get entries() {
    return this.#entries;
  }

  /** Whether an earlier page has left something: that page, or its copy in another tab, may have sent it. */
  get isFromBefore() {
    return this.#fromBefore.size > 0;
  }

  find(id) {
    return this.#entries.find((entry) => entry.client_message_id === id);
  }

  add(entry) {
    this.#entries.push(entry);
    this.#save();
  }

  /** The connection is gone: what was in flight is sent again over the next one. */
  disconnected() {
    this.#inFlight.clear();
    this.#pausedUntil = 0;
  }

  /**
   * What may be sent now; the rest waits for answers, or for the pace that the server allows. Messages whose window
   * ends soon are given up: sent later, they could appear twice.
   */
  take() {
    const now = this.#now();
    this.expire();
    this.#tokens = Math.min(SEND_BURST, this.#tokens + ((now - this.#refilled) / 1000) * SENDS_A_SECOND);
    this.#refilled = now;
    const taken = [];
    if (now < this.#pausedUntil) return taken;
    for (const entry of this.#entries) {
      if (this.#inFlight.size >= MOST_IN_FLIGHT || this.#tokens < 1) break;
      if (this.#inFlight.has(entry.client_message_id)) continue;
      this.#tokens -= 1;
      this.#inFlight.add(entry.client_message_id);
      entry.tried ??= now;
      taken.push(entry);
    }
    if (taken.length) this.#save();
    return taken;
  }

  /** Gives up what was tried so long ago that the server may soon have forgotten it. */
  expire() {
    const ended = this.#entries.filter((entry) => entry.tried && this.#now() - entry.tried > this.#window);
    for (const entry of ended) this.#end(entry, "failed", "expired");
  }

  /** When there may be more to send, or to give up, in milliseconds from now; undefined: not before something happens. */
  due(isOpen) {
    if (!this.#entries.length) return undefined;
    const now = this.#now();
    const waits = isOpen && this.#entries.some((entry) => !this.#inFlight.has(entry.client_message_id));
    const pace = this.#tokens < 1 ? (1 - this.#tokens) * (1000 / SENDS_A_SECOND) : 0;
    const next = waits && this.#inFlight.size < MOST_IN_FLIGHT ? Math.max(this.#pausedUntil - now, pace) : Infinity;
    const tried = Math.min(...this.#entries.map((entry) => entry.tried ?? Infinity));
    const first = Math.min(next, tried + this.#window + 1 - now);
    return first === Infinity ? undefined : Math.max(first, 10);
  }

  /** The server has it. */
  sent(id, fields) {
    const entry = this.find(id);
    this.#pause = RETRY_MS;
    if (entry) this.#end(Object.assign(entry, fields), "sent");
  }

  /** The server has refused it: for now, or for good. */
  refused(id, code, retryable) {
    const entry = this.find(id);
    if (!entry) return;
    if (!retryable) {
      this.#end(entry, "failed", code);
      return;
    }
    this.#inFlight.delete(id);
    this.#pausedUntil = this.#now() + this.#pause;
    this.#pause = Math.min(this.#pause * 2, MOST_RETRY_MS);
  }

  /** Forgets an entry that the user gives up or sends again as another message. */
  remove(id) {
    this.#entries = this.#entries.filter((entry) => entry.client_message_id !== id);
    this.#inFlight.delete(id);
    this.#fromBefore.delete(id);
    this.#save(id);
  }

  #end(entry, status, reason) {
    this.remove(entry.client_message_id);
    entry.status = status;
    if (reason) entry.reason = reason;
    this.#changed(entry);
  }

  #load() {
    this.#entries = this.#stored();
    this.#fromBefore = new Set(this.#entries.map((entry) => entry.client_message_id));
  }

  #stored() {
    try {
      const kept = JSON.parse(this.#storage?.getItem(this.#key) ?? "[]");
      return kept.filter((entry) => typeof entry?.client_message_id === "string");
    } catch {
      // What others have written there is no outbox.
      return [];
    }
  }

  /** What another chat of this page has added since stays. */
  #save(removed) {
    const isOther = ({ client_message_id: id }) => id !== removed && !this.find(id);
    const all = [...this.#stored().filter(isOther), ...this.#entries];
    try {
      if (all.length) this.#storage?.setItem(this.#key, JSON.stringify(all));
      else this.#storage?.removeItem(this.#key);
    } catch {
      // The storage is full or forbidden: messages are still kept as long as the page is.
    }
  }
}
