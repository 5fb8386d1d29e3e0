// A network that is gone for a minute. It takes that long, so it has a file of its own, which runs beside the others.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { startNetwork } from "../support.mjs";
import { address, complete, customer, desk, keep, open, server, shows } from "./browser.mjs";

const SECONDS = Number(process.env.CUT_SECONDS ?? 60);

test(`nothing is missed or doubled over ${SECONDS} s without a network`, async () => {
  const { url, port } = await server();
  const network = await startNetwork(port);
  keep(network, () => network.close());
  const names = { session: "s", customer: "alice", agent: "bob" };
  // Alice's network is cut, bob's is not.
  const page = await open(`${address(network.url, names)}&side=customer`);
  const other = await open(`${address(url, names)}&side=agent`);
  const [alice, bob] = [customer(page), desk(other)];
  await bob.choose("s");
  await alice.say("before");
  await complete(bob, ["before"]);
  await bob.say("bob before");
  await complete(alice, ["before", "bob before"]);

  network.cut();
  await shows("offline", alice.state, "offline");
  await shows("she is gone", () => bob.entry("s").innerText(), (text) => text.includes("no customer"));
  await alice.say("during one", "during two");
  await bob.say("bob during one", "bob during two");
  await sleep(SECONDS * 1_000);
  // During an attempt it is connecting.
  await shows("still offline", alice.state, "offline");
  assert.deepEqual((await alice.statuses()).slice(-2), ["sending", "sending"]);
  network.restore();

  const all = ["before", "bob before", "during one", "during two", "bob during one", "bob during two"];
  for (const view of [alice, bob]) await complete(view, all, 60_000);
  assert.deepEqual(await alice.texts(), await bob.texts(), "in the same order");
  await alice.say("after");
  for (const view of [alice, bob]) await complete(view, [...all, "after"]);
  await shows("she is back", () => bob.entry("s").innerText(), (text) => text.includes("active"));
  assert.equal(await alice.shown.locator(".gap").count(), 0);
  assert.deepEqual([...page.problems, ...other.problems], []);
});
