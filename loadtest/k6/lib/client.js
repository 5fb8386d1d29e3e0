// One connection to the server: knows the frames, not what they are good for.

import { check } from 'k6';
import exec from 'k6/execution';
import { Counter, Rate, Trend } from 'k6/metrics';
import { clearTimeout, setTimeout } from 'k6/timers';
import { WebSocket } from 'k6/websockets';
import { PATIENCE, SERVER } from './env.js';

const sessions = new Counter('chat_sessions');
const sessionsOk = new Rate('chat_sessions_ok');
const connecting = new Trend('chat_connecting', true);
const errors = new Counter('chat_errors');

/** Of one VU: a server that refuses everything is no reason for a million lines. */
const MOST_LINES = 5;
let lines = 0;

export function complain(what) {
  errors.add(1);
  if (lines < MOST_LINES) {
    lines += 1;
    console.error(what);
  }
}

export function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
}

/** Whether `holds()` came true within `patience` ms. */
export async function eventually(holds, patience = PATIENCE) {
  const deadline = Date.now() + patience;
  while (!holds()) {
    if (Date.now() >= deadline) return false;
    await pause(10);
  }
  return true;
}

/**
 * Runs one session to its end. Its name is new in each iteration and each run: nobody else may be in it.
 * `talk(session, join)` gets a way to connect; what has joined is closed behind it, for an iteration of k6 ends only
 * when its last socket has closed.
 */
export async function inSession(kind, talk) {
  // Several machines may number their VUs alike.
  const draw = Math.random().toString(36).slice(2, 10);
  const session = `k6-${kind}-${Date.now().toString(36)}-${exec.vu.idInTest}-${draw}`;
  const clients = [];
  const join = (user, type, onFrame) => {
    const client = new Client(session, user, type, onFrame);
    clients.push(client);
    return client;
  };
  sessions.add(1);
  errors.add(0);
  let ok = false;
  try {
    ok = await talk(session, join);
  } catch (error) {
    complain(`${session}: ${error}`);
  }
  await Promise.all(clients.map((client) => client.close()));
  sessionsOk.add(ok && clients.every((client) => client.isClosed || !client.socket));
}

export class Client {
  constructor(session, user, type, onFrame) {
    this.session = session;
    this.user = user;
    this.type = type;
    this.onFrame = onFrame;
    this.socket = null;
    this.frames = 0;
    this.isClosing = false;
    this.isClosed = false;
    /** Pings that have no pong yet, by their request_id. */
    this.fences = {};
    this.fenced = 0;
    /** Whoever waits for the end. */
    this.waiting = [];
  }

  /** Whether the greeting came, and came first; `onGreeting` is called as soon as it has. */
  async open(onGreeting = () => {}) {
    const began = Date.now();
    let settle;
    const greeted = new Promise((resolve) => {
      settle = resolve;
    });
    const timer = setTimeout(() => settle(false), PATIENCE);
    const url = `${SERVER}/ws/${this.session}/${this.user}/${this.type}`;
    this.socket = new WebSocket(url, null, { tags: { name: '/ws' } });
    this.socket.onmessage = (event) => {
      let frame;
      try {
        // The server sends text only.
        frame = JSON.parse(/** @type {string} */ (event.data));
      } catch (error) {
        complain(`${this.user}: a frame that is not JSON: ${error}`);
        return;
      }
      this.frames += 1;
      if (this.frames > 1) {
        this.take(frame);
        return;
      }
      const data = frame.data || {};
      const isGreeting = frame.type === 'connection_established' && data.session_id === this.session
        && data.user_id === this.user && data.user_type === this.type;
      connecting.add(Date.now() - began);
      if (isGreeting) onGreeting();
      else this.take(frame);
      settle(isGreeting);
    };
    this.socket.onerror = (event) => {
      // What goes wrong while we leave is the close's business.
      if (!this.isClosing) complain(`${this.user}: ${event && event.error}`);
      settle(false);
      // A refused handshake is followed by no close.
      if (this.frames === 0) this.ended();
    };
    this.socket.onclose = () => {
      if (!this.isClosing) complain(`${this.user}: closed, and not by us`);
      settle(false);
      this.ended();
    };
    const isGreeted = await greeted;
    clearTimeout(timer);
    return check(isGreeted, { 'the first frame is connection_established, and names us': (is) => is });
  }

  take(frame) {
    if (frame.type === 'pong' && this.fences[frame.request_id]) {
      delete this.fences[frame.request_id];
    } else if (frame.type === 'error') {
      complain(`${this.user}: ${frame.error} ${JSON.stringify(frame.data)}`);
    } else {
      this.onFrame(frame, Date.now());
    }
  }

  send(type, data, requestId) {
    if (this.isClosed) return;
    const frame = { type, data };
    if (requestId !== undefined) frame.request_id = requestId;
    this.socket.send(JSON.stringify(frame));
  }

  /** Whether the connection answers: what was written to it before that has been read by then. */
  async fence() {
    this.fenced += 1;
    const id = `fence-${this.fenced}`;
    this.fences[id] = true;
    this.send('ping', undefined, id);
    await eventually(() => !this.fences[id] || this.isClosed);
    return !this.fences[id];
  }

  ended() {
    this.isClosed = true;
    this.waiting.splice(0).forEach((resolve) => resolve());
  }

  /** Resolves when it has closed; at most PATIENCE later. */
  close() {
    if (!this.socket || this.isClosed) return Promise.resolve();
    return /** @type {Promise<void>} */ (new Promise((resolve) => {
      const timer = setTimeout(resolve, PATIENCE);
      this.waiting.push(() => {
        clearTimeout(timer);
        resolve();
      });
      if (this.isClosing) return;
      this.isClosing = true;
      this.socket.close(1000);
    }));
  }
}
