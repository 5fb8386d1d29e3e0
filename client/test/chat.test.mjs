import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { client, freePort, live, memoryStorage, startNetwork, startServer, statuses, texts, token, until } from "./support.mjs";

const closing = [];
const keep = (value, close) => (closing.push(close), value);
after(async () => {
  for (const close of closing.reverse()) await close();
});

const server = async (env, port) => {
  const started = await startServer(env, port);
  return keep(started, () => started.stop());
};
const chatOf = (...args) => {
  const chat = client(...args);
  return keep(chat.start(), () => chat.stop());
};

test("two sides chat, type and read", async () => {
  const { url } = await server();
  const alice = chatOf(url, "s1", "alice", "customer");
  const bob = chatOf(url, "s1", "bob", "agent");
  await Promise.all([live(alice), live(bob)]);
  let typing = new Map();
  bob.on("typing", (typists) => (typing = new Map(typists)));
  alice.typing();
  await until("bob sees alice type", () => typing.get("alice") === "customer");
  const entry = alice.send("hello");
  assert.equal(entry.status, "sending");
  await until("the message is there", () => texts(bob).includes("hello") && entry.status === "sent");
  await until("alice does not type any more", () => typing.size === 0);
  bob.read(bob.seen.messages.at(-1).message_id);
  await until("it is read", () => entry.status === "read");
  await until("both are shown", () => Object.keys(alice.users).join() === "alice,bob");
  assert.equal(alice.reads.get("bob"), entry.message_id);
  assert.deepEqual(alice.outbox, []);
});

test("nothing is missed or doubled over cuts, and what was written meanwhile is sent", async () => {
  const { port } = await server();
  const network = await startNetwork(port);
  keep(network, () => network.close());
  const alice = chatOf(network.url, "s1", "alice", "customer");
  const bob = chatOf(`http://127.0.0.1:${port}`, "s1", "bob", "agent");
  await Promise.all([live(alice), live(bob)]);
  const written = [];
  for (let round = 0; round < 5; round++) {
    const say = (chat, text) => (written.push(text), chat.send(text));
    say(alice, `a${round} before`);
    network.cut();
    say(alice, `a${round} during`);
    say(bob, `b${round} during`);
    await until("offline", () => alice.state.state !== "live");
    await sleep(50);
    network.restore();
    alice.retry();
    await until("live again", () => alice.state.state === "live" && alice.outbox.length === 0);
  }
  for (const chat of [alice, bob]) {
    await until("all is there", () => texts(chat).length >= written.length);
    assert.deepEqual(texts(chat).sort(), [...written].sort());
  }
  assert.deepEqual(texts(alice), texts(bob), "the same order for both");
  assert.ok(statuses(alice).every((status) => status === "sent"), statuses(alice).join());
});

test("a server that is killed and starts again is a gap, and the outbox is sent to it", async () => {
  const port = await freePort();
  const first = await startServer({}, port);
  const storage = memoryStorage();
  const alice = chatOf(first.url, "s1", "alice", "customer", { storage });
  await live(alice);
  alice.send("one");
  await until("sent", () => statuses(alice).join() === "sent");
  await first.stop();
  await until("offline", () => alice.state.state !== "live");
  const entry = alice.send("two");
  assert.match([...storage.kept.values()].join(), /two/);
  const second = await startServer({}, port);
  keep(second, () => second.stop());
  alice.retry();
  await until("sent to the second", () => entry.status === "sent", 30_000);
  // Embedded, the log ends with the process.
  assert.deepEqual(alice.seen.gaps, [{ reason: "unknown_message" }]);
  assert.equal(storage.kept.size, 0);
});

test("a page that is loaded again has its history, and sends what was left", async () => {
  const { url } = await server();
  const storage = memoryStorage();
  const before = chatOf(url, "s1", "alice", "customer", { storage });
  await live(before);
  before.send("one");
  await until("sent", () => texts(before).length === 1);
  before.stop();
  before.send("two");
  const after = chatOf(url, "s1", "alice", "customer", { storage });
  assert.deepEqual(after.outbox.map(({ message }) => message), ["two"]);
  await until("both are shown", () => texts(after).join() === "one,two");
  await until("nothing is left", () => after.outbox.length === 0);
});

test("a burst of 60 over the rate limit is all sent, in order and once", async () => {
  const { url } = await server();
  const alice = chatOf(url, "s1", "alice", "customer", { history: 0 });
  const bob = chatOf(url, "s1", "bob", "agent");
  await Promise.all([live(alice), live(bob)]);
  const burst = Array.from({ length: 60 }, (_, n) => `m${n}`);
  for (const text of burst) alice.send(text);
  await until("all are sent", () => statuses(alice).filter((status) => status === "sent").length === 60, 30_000);
  await until("all are there", () => texts(bob).length >= 60);
  assert.deepEqual(texts(bob), burst);
});

test("a stricter limit than the client expects is kept to", async () => {
  const { url } = await server({ RATE_LIMIT_MESSAGES: 5, RATE_LIMIT_BURST: 5 });
  const alice = chatOf(url, "s1", "alice", "customer", { pingMs: 10_000 });
  await live(alice);
  for (let n = 0; n < 20; n++) alice.send(`m${n}`);
  await until("all are sent", () => statuses(alice).filter((status) => status === "sent").length === 20, 60_000);
  assert.ok(alice.seen.states.every(({ state }) => state !== "stopped"));
});

test("a dead peer is noticed by its silence", async () => {
  const { port } = await server();
  const network = await startNetwork(port);
  keep(network, () => network.close());
  const alice = chatOf(network.url, "s1", "alice", "customer");
  await live(alice);
  network.silence();
  await until("silence", () => alice.seen.states.some(({ reason }) => reason === "silence"));
  network.restore();
  alice.retry();
  await live(alice);
});

test("refusals are told from a dead network, with the reason", async () => {
  const { url } = await server();
  const bad = chatOf(url, "no such session!", "alice", "customer");
  await until("stopped", () => bad.state.state === "stopped");
  assert.equal(bad.state.reason, "http_400");
  assert.match(bad.state.detail, /session/i);
  const nobody = chatOf(`http://127.0.0.1:${await freePort()}`, "s1", "alice", "customer");
  await until("offline", () => nobody.state.reason === "network");
  const full = await server({ MAX_CONNECTIONS_PER_IP: 1 });
  const first = chatOf(full.url, "s1", "alice", "customer");
  await live(first);
  const second = chatOf(full.url, "s1", "bob", "customer");
  await until("asked to wait", () => second.state.state === "offline" && second.state.retryInMs >= 1_000);
  assert.equal(second.state.reason, "http_429");
});

test("who is replaced stays closed", async () => {
  const { url } = await server({ MAX_CONNECTIONS_PER_USER: 1 });
  const first = chatOf(url, "s1", "alice", "customer");
  await live(first);
  const second = chatOf(url, "s1", "alice", "customer");
  await live(second);
  await until("replaced", () => first.state.state === "stopped");
  assert.equal(first.state.reason, "replaced");
  await sleep(1_500);
  assert.deepEqual([first.state.state, second.state.state], ["stopped", "live"]);
});

test("tokens are renewed over the connection, and a refused one is replaced once", async () => {
  const secret = "0123456789abcdef0123456789abcdef";
  const { url } = await server({ JWT_SECRET: secret, JWT_LEEWAY: "0s" });
  const claims = (seconds) => ({
    sub: "alice",
    role: "customer",
    sessions: ["s1"],
    exp: Math.floor(Date.now() / 1000) + seconds,
  });
  let given = 0;
  const renewing = chatOf(url, "s1", "alice", "customer", { token: async () => (given++, token(secret, claims(given > 1 ? 600 : 8))) });
  await live(renewing);
  await until("renewed", () => renewing.seen.frames.some(({ type }) => type === "authenticated"));
  await sleep(6_000);
  assert.equal(renewing.state.state, "live");
  assert.equal(given, 2);

  let asked = 0;
  const expired = chatOf(url, "s1", "alice", "customer", { token: () => token(secret, claims(asked++ ? 600 : -600)) });
  await live(expired);
  assert.equal(asked, 2);

  const refusedFor = async (session, provider) => {
    const chat = chatOf(url, session, "alice", "customer", { token: provider });
    await until("stopped", () => chat.state.state === "stopped");
    return chat.state.reason;
  };
  assert.equal(await refusedFor("s1", () => token("x".repeat(32), claims(600))), "unauthenticated");
  assert.equal(await refusedFor("s2", () => token(secret, claims(600))), "forbidden");
  assert.equal(await refusedFor("s1", () => "no token"), "bad_token");
  // As a page's own answer may be.
  await live(chatOf(url, "s1", "alice", "customer", { token: () => `${token(secret, claims(600))}\n` }));
});

test("what can't be sent is told at once, and nothing is thrown into the page", async () => {
  const { url } = await server();
  const alice = chatOf(url, "s1", "alice", "customer");
  await live(alice);
  alice.on("message", () => {
    throw new Error("the application's");
  });
  const { error } = console;
  console.error = () => {};
  try {
    assert.deepEqual(alice.send("").reason, "empty");
    assert.deepEqual(alice.send("😀".repeat(20_000)).reason, "too_big");
    const entry = alice.send("fine");
    await until("sent", () => entry.status === "sent");
  } finally {
    console.error = error;
  }
});

test("a message whose window ends is given up, and says so", async () => {
  const { port } = await server();
  const network = await startNetwork(port);
  keep(network, () => network.close());
  const alice = chatOf(network.url, "s1", "alice", "customer", { dedupWindowMs: 61_000 });
  await live(alice);
  network.silence();
  const entry = alice.send("lost");
  await until("given up", () => entry.status === "failed");
  assert.equal(entry.reason, "expired");
  assert.deepEqual(alice.outbox, []);
});

test("other services' types pass through", async () => {
  const { url } = await server();
  const alice = chatOf(url, "s1", "alice", "customer");
  const types = [];
  alice.on("connection_established", ({ user_id }) => types.push(user_id));
  await live(alice);
  assert.deepEqual(types, ["alice"]);
});

test("who was typing when the connection ended is not shown as typing", async () => {
  const { port } = await server();
  const network = await startNetwork(port);
  keep(network, () => network.close());
  const alice = chatOf(network.url, "s1", "alice", "customer");
  const bob = chatOf(`http://127.0.0.1:${port}`, "s1", "bob", "agent");
  await Promise.all([live(alice), live(bob)]);
  let typing = 0;
  alice.on("typing", (typists) => (typing = typists.size));
  bob.typing();
  await until("bob types", () => typing === 1);
  network.cut();
  await until("nobody types", () => typing === 0);
});

test("without a connection a message waits at rest, and is given up in time", async () => {
  const { port } = await server();
  const network = await startNetwork(port);
  keep(network, () => network.close());
  let asked = 0;
  const now = () => (asked++, Date.now());
  const alice = chatOf(network.url, "s1", "alice", "customer", { dedupWindowMs: 61_500, now });
  await live(alice);
  network.silence();
  const tried = alice.send("tried");
  network.cut();
  await until("offline", () => alice.state.state !== "live");
  const waiting = alice.send("waits");
  asked = 0;
  await sleep(500);
  assert.ok(asked < 50, `the clock was read ${asked} times`);
  await until("given up", () => tried.status === "failed");
  assert.equal(tried.reason, "expired");
  assert.equal(waiting.status, "sending", "it was never sent, so it can't be doubled");
});

test("who starts again after a refusal asks for another token", async () => {
  const secret = "0123456789abcdef0123456789abcdef";
  const { url } = await server({ JWT_SECRET: secret });
  const claims = { sub: "alice", role: "customer", sessions: ["s1"], exp: Math.floor(Date.now() / 1000) + 600 };
  let isRight = false;
  const alice = chatOf(url, "s1", "alice", "customer", { token: () => token(isRight ? secret : "x".repeat(32), claims) });
  await until("stopped", () => alice.state.state === "stopped");
  isRight = true;
  alice.start();
  await live(alice);
});

test("hundreds of messages that are read at once are a few receipts, and the newest counts", async () => {
  const { port, url } = await server({ RATE_LIMIT_MESSAGES: 20, RATE_LIMIT_BURST: 40 });
  const network = await startNetwork(port);
  keep(network, () => network.close());
  const alice = chatOf(network.url, "s1", "alice", "customer");
  alice.on("message", ({ message_id }, { isOwn }) => isOwn || alice.read(message_id));
  const others = Array.from({ length: 10 }, (_, n) => chatOf(url, "s1", `bob${n}`, "agent", { history: 0 }));
  await Promise.all([alice, ...others].map(live));
  network.cut();
  await until("offline", () => alice.state.state !== "live");
  for (const other of others) for (let n = 0; n < 30; n++) other.send(`m${n}`);
  await until("all are sent", () => others.every((other) => other.outbox.length === 0), 30_000);
  network.restore();
  alice.retry();
  await until("all are there", () => alice.seen.messages.length === 300, 30_000);
  const newest = String(alice.seen.messages.at(-1).message_id);
  await until("the newest is read", () => others[0].reads.get("alice") === newest);
  assert.equal(alice.state.state, "live");
  assert.deepEqual(alice.seen.frames.filter(({ type }) => type === "error"), []);
  const own = alice.send("after");
  await until("sent", () => own.status === "sent");
});

test("a receipt that the server refuses for its rate is told again, and none goes back", async () => {
  const { url } = await server({ RATE_LIMIT_MESSAGES: 1, RATE_LIMIT_BURST: 3 });
  const bob = chatOf(url, "s1", "bob", "agent", { history: 0, pingMs: 60_000 });
  const alice = chatOf(url, "s1", "alice", "customer", { history: 0, pingMs: 60_000 });
  await Promise.all([live(alice), live(bob)]);
  const ids = [];
  for (const text of ["a", "b"]) {
    const entry = bob.send(text);
    await until("sent", () => entry.status === "sent");
    ids.push(entry.message_id);
  }
  await until("both are there", () => alice.seen.messages.length === 2);
  // Nothing more is taken for a moment.
  for (let n = 0; n < 5; n++) alice.typing(), alice.stopTyping();
  alice.read(ids[1]);
  alice.read(ids[0]);
  await until("it is read", () => bob.reads.get("alice") === ids[1]);
  assert.ok(alice.seen.frames.some(({ type, data }) => type === "error" && data.code === "rate_limited"), "it was refused");
});

test("a provider that gives the same token again is asked a few times, not all the time", async () => {
  const secret = "0123456789abcdef0123456789abcdef";
  const { url } = await server({ JWT_SECRET: secret, JWT_LEEWAY: "0s" });
  const claims = (seconds) => ({ sub: "alice", role: "customer", sessions: ["s1"], exp: Math.floor(Date.now() / 1000) + seconds });
  const [old, fresh] = [token(secret, claims(16)), token(secret, claims(600))];
  let asked = 0;
  const isOld = () => ++asked < 4;
  const alice = chatOf(url, "s1", "alice", "customer", { token: () => (isOld() ? old : fresh) });
  await live(alice);
  const renewed = () => alice.seen.frames.filter(({ type }) => type === "authenticated").length;
  await until("renewed", () => renewed() === 1);
  assert.equal(asked, 4);
  assert.equal(alice.seen.frames.filter(({ type }) => type === "token_expiring").length, 1);
  // One that is always short is not renewed all the time, either.
  let given = 0;
  const short = chatOf(url, "s1", "alice", "customer", { token: () => (given++, token(secret, { ...claims(20), jti: given })) });
  await live(short);
  await sleep(3_000);
  assert.ok(given <= 2, `asked ${given} times`);
});

test("what an earlier page has left is sent after the replay, which may have it", async () => {
  const { url } = await server({ DEDUP_WINDOW: "1s" });
  const storage = memoryStorage();
  const written = client(url, "s1", "alice", "customer", { storage });
  written.send("once");
  const [[key, copy]] = storage.kept;
  keep(written.start(), () => written.stop());
  await until("sent", () => statuses(written).join() === "sent");
  // A tab that was duplicated before that, and comes after the server has forgotten it.
  await sleep(1_500);
  storage.setItem(key, copy);
  const duplicate = chatOf(url, "s1", "alice", "customer", { storage });
  await live(duplicate);
  await until("confirmed", () => duplicate.outbox.length === 0);
  const entry = duplicate.send("last");
  await until("sent", () => entry.status === "sent");
  await until("both are there", () => texts(written).length === 2);
  assert.deepEqual(texts(written), ["once", "last"]);
});

test("a message that was given up is sent after all when it arrives", async () => {
  const { port } = await server();
  const network = await startNetwork(port);
  keep(network, () => network.close());
  const alice = chatOf(network.url, "s1", "alice", "customer", { dedupWindowMs: 60_300, timeoutMs: 10_000, pingMs: 60_000 });
  await live(alice);
  network.holdAnswers();
  const entry = alice.send("late");
  await until("given up", () => entry.reason === "expired");
  network.restore();
  network.cut();
  network.restore();
  await until("it is there", () => texts(alice).includes("late"));
  assert.deepEqual([entry.status, entry.reason], ["sent", undefined]);
  assert.equal(alice.seen.outbox.get(entry.client_message_id), "sent");
});

test("after a final close what was tried is given up in time", async () => {
  const { url } = await server({ MAX_CONNECTIONS_PER_USER: 1 });
  const first = chatOf(url, "s1", "alice", "customer", { dedupWindowMs: 66_000 });
  await live(first);
  first.seen.sockets.at(-1).send = () => {};
  const entry = first.send("lost");
  await live(chatOf(url, "s1", "alice", "customer"));
  await until("replaced", () => first.state.state === "stopped");
  assert.equal(entry.status, "sending");
  await until("given up", () => entry.reason === "expired");
});

test("in production without tokens there is no history, and the rest works", async () => {
  const { url } = await server({ ENVIRONMENT: "production" });
  const alice = chatOf(url, "s1", "alice", "customer");
  await live(alice);
  assert.deepEqual(alice.seen.gaps, [{ reason: "not_offered" }]);
  const entry = alice.send("hello");
  await until("sent", () => entry.status === "sent");
});

test("frames of other services that are odd are passed on, and throw nothing", async () => {
  const { url } = await server({ API_KEYS: "a-key-of-the-tests-0123456789" });
  const alice = chatOf(url, "s1", "alice", "customer");
  await live(alice);
  const { error } = console;
  const errors = [];
  console.error = (what) => errors.push(what);
  const passed = [];
  alice.on("odd", (data) => passed.push(data));
  try {
    const socket = alice.seen.sockets.at(-1);
    for (const frame of [
      { type: "odd", data: null },
      { type: "odd", data: 7 },
      { type: 7 },
      { type: "connection_status_update", data: { events: null, connection_status: null } },
      { type: "connection_status_update", data: { events: 7 } },
      { type: "new_message", data: { message: "without an id" } },
      { type: "new_message", data: { message: "and another" } },
      { type: "read_state", data: { read: null } },
    ]) {
      socket.onmessage({ data: JSON.stringify(frame) });
    }
    const circular = {};
    circular.self = circular;
    assert.equal(alice.send("x", { attachments: [circular] }).reason, "invalid");
    assert.equal(alice.send("x", { attachments: [1n] }).reason, "invalid");
    const entry = alice.send("x", null);
    await until("sent", () => entry.status === "sent");
  } finally {
    console.error = error;
  }
  assert.deepEqual(passed, [null, 7]);
  assert.deepEqual(texts(alice).slice(0, 2), ["without an id", "and another"]);
  assert.equal(errors.length, 1, "of events that are no list");
});

test("without a WebSocket, and with a server that asks to wait, a page does what it can", async () => {
  const nothing = chatOf("http://127.0.0.1:1", "s1", "alice", "customer", { WebSocket: null });
  assert.deepEqual([nothing.state.state, nothing.state.reason], ["stopped", "no_websocket"]);
  const { url } = await server({ MAX_CONNECTIONS_PER_IP: 1 });
  await live(chatOf(url, "s1", "bob", "customer"));
  const page = new EventTarget();
  const second = chatOf(url, "s1", "alice", "customer", { page });
  await until("asked to wait", () => second.state.reason === "http_429");
  const before = second.seen.states.length;
  for (let n = 0; n < 5; n++) page.dispatchEvent(new Event("online"));
  assert.equal(second.seen.states.length, before, "Retry-After is kept to");
  second.retry();
  assert.equal(second.state.state, "connecting", "unless the user asks");
});

test("a proxy that has no server for a moment is asked again", async () => {
  const proxy = createServer((_, answer) => answer.writeHead(404, { "Content-Type": "text/html" }).end("<h1>no such host</h1>"));
  await new Promise((done) => proxy.listen(0, "127.0.0.1", done));
  keep(proxy, () => proxy.close());
  const alice = chatOf(`http://127.0.0.1:${proxy.address().port}`, "s1", "alice", "customer");
  await until("it waits", () => alice.state.state === "offline" && alice.state.reason === "http_404");
});
