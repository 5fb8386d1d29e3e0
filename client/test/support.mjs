// A server as a process, a network that can be cut, and clients that note what they see.

import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { createServer, connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

import { LiveChat } from "../src/index.js";

const BINARY = process.env.LIVECHAT_SERVER ?? "../target/release/livechat-ws";

/** From below the range that the kernel takes ports of outgoing connections from: nobody else gets it meanwhile. */
export async function freePort() {
  for (;;) {
    const port = 15_000 + Math.floor(Math.random() * 15_000);
    const server = createServer();
    const isFree = await new Promise((done) => {
      server.once("error", () => done(false)).listen(port, "127.0.0.1", () => done(true));
    });
    if (!isFree) continue;
    await new Promise((done) => server.close(done));
    return port;
  }
}

export async function startServer(env = {}, port) {
  port ??= await freePort();
  const child = spawn(BINARY, [], {
    env: { PATH: process.env.PATH, HOST: "127.0.0.1", PORT: port, WS_PORT: "", ADMIN_ADDR: "", LOG_LEVEL: "warn", ...env },
    stdio: ["ignore", "ignore", "inherit"],
    cwd: "/tmp",
  });
  const exited = new Promise((done) => child.once("exit", done));
  const server = {
    port,
    url: `http://127.0.0.1:${port}`,
    async stop(signal = "SIGKILL") {
      child.kill(signal);
      await exited;
    },
  };
  await until("the server is ready", async () => (await fetch(`${server.url}/ready`)).ok);
  return server;
}

/** Passes bytes on to a server, until it is cut. */
export async function startNetwork(target) {
  const port = await freePort();
  const sockets = new Set();
  let isCut = false;
  let isSilent = false;
  let isHeld = false;
  const listener = createServer((from) => {
    if (isCut) return from.destroy();
    const to = connect(target, "127.0.0.1");
    for (const [a, b] of [[from, to], [to, from]]) {
      sockets.add(a);
      a.on("data", (bytes) => isSilent || (isHeld && a === to) || b.write(bytes));
      a.on("close", () => (sockets.delete(a), b.destroy()));
      a.on("error", () => b.destroy());
    }
  }).listen(port, "127.0.0.1");
  await new Promise((done) => listener.once("listening", done));
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    cut() {
      isCut = true;
      for (const socket of sockets) socket.destroy();
    },
    /** As a dead peer: connections stay, and nothing passes. */
    silence(silent = true) {
      isSilent = silent;
    },
    /** What the server says is lost; what it is told arrives. */
    holdAnswers() {
      isHeld = true;
    },
    restore() {
      isCut = isSilent = isHeld = false;
    },
    close() {
      this.cut();
      return new Promise((done) => listener.close(done));
    },
  };
}

export async function until(what, check, ms = 60_000) {
  const end = Date.now() + ms;
  let last;
  while (Date.now() < end) {
    try {
      last = await check();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    await sleep(20);
  }
  throw new Error(`not within ${ms} ms: ${what} (${last})`);
}

export function memoryStorage() {
  const kept = new Map();
  return {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => kept.set(key, value),
    removeItem: (key) => kept.delete(key),
    kept,
  };
}

/** A client with a record of its events. */
export function client(url, session, user, type, options = {}) {
  const seen = { states: [], messages: [], outbox: new Map(), gaps: [], frames: [], sockets: [] };
  class Socket extends WebSocket {
    constructor(...args) {
      super(...args);
      seen.sockets.push(this);
    }
  }
  const defaults = { storage: null, pingMs: 500, timeoutMs: 5_000, WebSocket: Socket };
  const chat = new LiveChat({ url, session, user, type, ...defaults, ...options });
  chat.on("state", (state) => seen.states.push(state));
  chat.on("message", (message) => seen.messages.push(message));
  chat.on("outbox", (entry) => seen.outbox.set(entry.client_message_id, entry.status));
  chat.on("gap", (gap) => seen.gaps.push(gap));
  chat.on("frame", (frame) => seen.frames.push(frame));
  return Object.assign(chat, { seen });
}

export const live = (chat) => until("live", () => chat.state.state === "live");
export const texts = (chat) => chat.seen.messages.map(({ message }) => message);
export const statuses = (chat) => [...chat.seen.outbox.values()];

export function token(secret, claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}
