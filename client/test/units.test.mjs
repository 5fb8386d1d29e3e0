import assert from "node:assert/strict";
import { test } from "node:test";

import { Backoff, finalReason, retryAfter } from "../src/backoff.js";
import { Order } from "../src/order.js";
import { Outbox } from "../src/outbox.js";
import { memoryStorage } from "./support.mjs";

test("pauses double up to 15 s and are drawn from the whole range", () => {
  const longest = new Backoff(() => 1);
  assert.deepEqual(Array.from({ length: 8 }, () => longest.next(1006)), [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
  longest.reset();
  assert.equal(longest.next(1006), 500);
  assert.equal(new Backoff(() => 0).next(1006), 0);
  assert.equal(new Backoff(() => 1).next(1001), 1000);
  assert.equal(new Backoff(() => 0.5).next(undefined, 3000), 3250);
});

test("final close codes have a reason, others none", () => {
  for (const code of [1002, 1003, 1007, 1008, 1009, 4009, 4403]) assert.ok(finalReason(code), code);
  for (const code of [1000, 1001, 1006, 1011, 4001, 4008, 4401, 4999]) assert.equal(finalReason(code), undefined);
});

test("Retry-After is seconds or a date, within five minutes", () => {
  const now = Date.parse("2026-01-01T00:00:00Z");
  assert.equal(retryAfter("7", now), 7000);
  assert.equal(retryAfter("Thu, 01 Jan 2026 00:00:30 GMT", now), 30_000);
  for (const nonsense of [null, "", "soon", "-3"]) assert.equal(retryAfter(nonsense, now), 0);
  assert.equal(retryAfter("86400", now), 300_000);
});

test("messages count once and are compared by their order or by their time", () => {
  const order = new Order();
  assert.deepEqual(["a", "b", "a"].map((id) => order.add(id)), [true, true, false]);
  assert.ok(order.isUpTo("a", "b") && order.isUpTo("b", "b") && !order.isUpTo("b", "a"));
  const [older, newer] = ["018f4e3a-7c1e-7000-8000-000000000000", "018f4e3a-7c1f-7000-8000-000000000000"];
  assert.ok(order.isUpTo(older, newer) && !order.isUpTo(newer, older));
  assert.ok(!order.isUpTo("unknown", "a"));
});

function outbox({ storage = memoryStorage(), windowMs = 240_000 } = {}) {
  const clock = { now: 1_000_000 };
  const changed = [];
  const box = new Outbox({ storage, key: "k", windowMs, now: () => clock.now, changed: (entry) => changed.push({ ...entry }) });
  const add = (id) => box.add({ client_message_id: id, message: id, created: clock.now, status: "sending" });
  const taken = () => box.take().map(({ client_message_id }) => client_message_id);
  return { box, clock, changed, add, taken, storage };
}

test("an outbox sends in order, some at a time, and again after a lost connection", () => {
  const { box, clock, add, taken } = outbox();
  for (let n = 0; n < 15; n++) add(`m${n}`);
  assert.deepEqual(taken(), Array.from({ length: 10 }, (_, n) => `m${n}`));
  assert.deepEqual(taken(), []);
  box.sent("m0", {});
  assert.deepEqual(taken(), ["m10"]);
  box.disconnected();
  clock.now += 10_000;
  assert.deepEqual(taken(), Array.from({ length: 10 }, (_, n) => `m${n + 1}`));
});

test("a burst is paced", () => {
  const { box, clock, add, taken } = outbox();
  for (let n = 0; n < 60; n++) add(`m${n}`);
  let all = 0;
  for (let ms = 0; ms <= 1000; ms += 10, clock.now += 10) {
    const now = taken();
    all += now.length;
    for (const id of now) box.sent(id, {});
  }
  assert.ok(all >= 28 && all <= 30, all);
  assert.ok(box.due(true) <= 100, box.due(true));
});

test("a refusal that may pass is tried again after a pause, another one is final", () => {
  const { box, clock, changed, add, taken } = outbox();
  add("a");
  add("b");
  assert.deepEqual(taken(), ["a", "b"]);
  box.refused("a", "rate_limited", true);
  box.refused("b", "record_too_large", false);
  assert.deepEqual(changed.map(({ client_message_id, status, reason }) => [client_message_id, status, reason]), [
    ["b", "failed", "record_too_large"],
  ]);
  assert.deepEqual(taken(), []);
  assert.equal(box.due(true), 1000);
  clock.now += 1000;
  assert.deepEqual(taken(), ["a"]);
  box.refused("a", "rate_limited", true);
  assert.equal(box.due(true), 2000);
});

test("a message is given up before the server may forget it, but not while it was never sent", () => {
  const { box, clock, changed, add, taken } = outbox({ windowMs: 1000 });
  add("a");
  clock.now += 5000;
  assert.deepEqual(taken(), ["a"]);
  box.disconnected();
  add("b");
  clock.now += 1001;
  assert.deepEqual(taken(), ["b"]);
  assert.deepEqual(changed.map(({ client_message_id, reason }) => [client_message_id, reason]), [["a", "expired"]]);
});

test("two outboxes at one place keep what the other has written", () => {
  const { add, box, storage } = outbox();
  add("a");
  const other = outbox({ storage });
  other.add("b");
  add("c");
  box.take();
  const kept = () => outbox({ storage }).taken().sort();
  assert.deepEqual(kept(), ["a", "b", "c"]);
  box.sent("a", {});
  box.sent("c", {});
  other.box.sent("a", {});
  assert.deepEqual(kept(), ["b"]);
  other.box.remove("b");
  assert.deepEqual(kept(), []);
  assert.equal(storage.getItem("k"), null);
});

test("an outbox is kept over reloads, and survives what else is stored there", () => {
  const { add, storage } = outbox();
  add("a");
  assert.deepEqual(outbox({ storage }).taken(), ["a"]);
  for (const nonsense of ["{", "7", "null", '[null,1,{"client_message_id":3}]']) {
    const broken = memoryStorage();
    broken.setItem("k", nonsense);
    assert.deepEqual(outbox({ storage: broken }).taken(), []);
  }
  const full = { ...memoryStorage(), setItem: () => { throw new Error("QuotaExceededError"); } };
  const kept = outbox({ storage: full });
  kept.add("a");
  assert.deepEqual(kept.taken(), ["a"]);
});
