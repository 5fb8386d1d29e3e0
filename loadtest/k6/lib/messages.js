// Numbered messages: who sends them, and what each connection has seen of them.

import { Counter, Trend } from 'k6/metrics';
import { complain, pause } from './client.js';

const received = new Counter('chat_received');
const lost = new Counter('chat_lost');
const doubled = new Counter('chat_doubled');
const reordered = new Counter('chat_reordered');
const ackLatency = new Trend('chat_ack_latency', true);
const deliveryLatency = new Trend('chat_delivery_latency', true);

/** What one person sends: message number n was due at `due[n]`, and has the id `ids[n]` by its answer. */
export class Sender {
  constructor(session, user, type) {
    this.session = session;
    this.user = user;
    this.type = type;
    /** Set by whoever connects it. */
    this.client = null;
    this.due = [];
    this.ids = [];
    this.answers = 0;
    this.strayAnswers = 0;
  }

  clientMessageId(n) {
    return `${this.session}/${this.user}/${n}`;
  }

  /** Sends the next one. `due` is when it should have gone: a late sender's delay counts as the message's. */
  send(due) {
    const n = this.due.length;
    this.due.push(due);
    const id = this.clientMessageId(n);
    this.client.send('send_message', { message: `Message ${n} of ${this.user}`, client_message_id: id }, n);
  }

  /** A `message_sent`. */
  answered(frame, now) {
    const n = frame.request_id;
    const data = frame.data;
    const isOurs = n < this.due.length && data.client_message_id === this.clientMessageId(n);
    if (!isOurs || this.ids[n] !== undefined) {
      this.strayAnswers += 1;
      return;
    }
    this.ids[n] = data.message_id;
    this.answers += 1;
    ackLatency.add(now - this.due[n]);
  }

  get isAnswered() {
    return this.answers === this.due.length && this.strayAnswers === 0;
  }
}

/** Has each of `senders` in turn send one message, `rate` a second in all, for `ms`. */
export async function converse(senders, rate, ms) {
  const began = Date.now();
  const count = Math.max(senders.length, Math.floor((ms / 1000) * rate));
  for (let i = 0; i < count; i += 1) {
    const due = began + (i * 1000) / rate;
    await pause(due - Date.now());
    const sender = senders[i % senders.length];
    if (sender.client.isClosed) return;
    sender.send(due);
  }
}

/** What one connection has seen, from the moment it was greeted. */
export class Seen {
  constructor(senders) {
    this.senders = senders;
    // Numbers that were not sent yet must come; earlier ones may.
    this.from = senders.map((sender) => sender.due.length);
    this.numbers = senders.map(() => new Set());
    this.highest = senders.map(() => -1);
    this.ids = [];
    this.wrong = 0;
    received.add(0);
  }

  /** A `new_message`. */
  take(frame, now) {
    const data = frame.data;
    const s = this.senders.findIndex((sender) => sender.user === data.sender_id);
    const sender = this.senders[s];
    const n = sender ? Number(String(data.client_message_id).split('/')[2]) : -1;
    const isRight = sender && n < sender.due.length && data.client_message_id === sender.clientMessageId(n)
      && data.session_id === sender.session && data.sender_type === sender.type && data.message_type === 'text'
      && data.message === `Message ${n} of ${sender.user}`;
    if (!isRight) {
      this.wrong += 1;
      if (this.wrong === 1) complain(`not a message that was sent: ${JSON.stringify(data)}`);
      return;
    }
    if (this.numbers[s].has(n)) {
      doubled.add(1);
      return;
    }
    this.numbers[s].add(n);
    if (n < this.highest[s]) reordered.add(1);
    this.highest[s] = Math.max(this.highest[s], n);
    this.ids.push(data.message_id);
    received.add(1);
    deliveryLatency.add(now - sender.due[n]);
  }

  missing(s, until) {
    let missing = 0;
    for (let n = this.from[s]; n < until[s]; n += 1) {
      if (!this.numbers[s].has(n)) missing += 1;
    }
    return missing;
  }

  /** What has been sent up to now. */
  sent() {
    return this.senders.map((sender) => sender.due.length);
  }

  /** Nothing up to `until` is missing. A sum, for this is asked again and again: `missing` looks at each. */
  isWhole(until = this.sent()) {
    return this.senders.every((_, s) => this.highest[s] >= until[s] - 1 && this.missing(s, until) === 0);
  }

  /** The account, behind a fence. */
  close(until = this.sent()) {
    const missing = this.senders.reduce((sum, _, s) => sum + this.missing(s, until), 0);
    lost.add(missing);
    doubled.add(0);
    reordered.add(0);
    return missing === 0;
  }

  /** Whether the answers named the messages by the ids with which they came. */
  agreesWithAnswers() {
    const seen = new Set(this.ids);
    return this.senders.every((sender) => sender.ids.every((id) => id === undefined || seen.has(id)));
  }
}
