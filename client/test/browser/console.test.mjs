// The console as somebody uses it who tries the server.

import assert from "node:assert/strict";
import { test } from "node:test";

import { freePort, startServer, token, until } from "../support.mjs";
import { address, complete, context, customer, desk, keep, meet, open, server, shows } from "./browser.mjs";

const SECRET = "0123456789abcdef0123456789abcdef";

test("both sides chat, type and read", async () => {
  const { url } = await server();
  const page = await open(address(url, { session: "shop", customer: "alice", agent: "bob" }));
  const [alice, bob] = [customer(page), desk(page)];
  await shows("she waits", () => bob.group("Waiting").innerText(), (text) => /shop[\s\S]*waiting \d+:\d\d/.test(text));
  await alice.say("Hello, is anybody there?");
  await shows("it is sent", alice.statuses, ["sent"]);
  await bob.choose("shop");
  await shows("the group", () => bob.group("My conversations").innerText(), (text) => /shop[\s\S]*active/.test(text));
  await shows("bob has it", bob.texts, ["Hello, is anybody there?"]);
  await shows("and has read it", alice.statuses, ["read"]);
  await shows("who is there", () => alice.shown.locator("[data-online]").innerText(), "Online: alice (customer) and bob (agent)");

  await bob.input.pressSequentially("Yes");
  await shows("bob types", alice.typing, "bob is typing");
  await alice.input.pressSequentially("My");
  await shows("alice types", bob.typing, "alice is typing");
  await shows("in the list, too", () => bob.entry("shop").innerText(), (text) => text.includes("alice is typing"));
  await bob.input.press("Enter");
  await shows("bob does not type any more", alice.typing, "");
  await alice.input.fill("");
  await shows("nor does alice", bob.typing, "");
  await complete(alice, ["Hello, is anybody there?", "Yes"]);
  await shows("alice has read it", bob.statuses, ["read"]);

  // A message with a line break, and with what is no markup here.
  await alice.input.fill("<b>one</b>");
  await alice.input.press("Shift+Enter");
  await alice.input.pressSequentially("two");
  await alice.input.press("Enter");
  await shows("text is text", bob.texts, (texts) => texts.at(-1) === "<b>one</b>\ntwo");
  assert.deepEqual(page.problems, []);
});

test("a reload keeps what was said, and sends what was written without a network", async () => {
  const { url } = await server();
  const page = await open(address(url, { session: "s" }));
  const [alice, bob] = await meet(page, "s");
  await alice.say("one");
  await bob.say("two");
  await complete(alice, ["one", "two"]);
  await alice.cut();
  await bob.cut();
  await shows("offline", alice.state, "offline");
  await alice.say("three");
  await bob.say("four");
  await shows("it waits", alice.statuses, (all) => all.at(-1) === "sending");
  await shows("bob's, too", bob.statuses, (all) => all.at(-1) === "sending");
  await page.reload();
  // The agent is still in the session.
  await meet(page, "s");
  await complete(alice, ["one", "two", "three", "four"]);
  await complete(bob, ["one", "two", "three", "four"]);
  assert.deepEqual(await alice.texts(), await bob.texts(), "in the same order");
  assert.deepEqual(page.problems, []);
});

test("a network that is cut by the button misses nothing", async () => {
  const { url } = await server();
  const page = await open(address(url, { session: "s" }));
  const [alice, bob] = await meet(page, "s");
  const all = [];
  for (let round = 0; round < 3; round++) {
    const cut = round % 2 ? bob : alice;
    await cut.cut();
    await shows("it says so", () => cut.notice().innerText(), (text) => text.includes("The network is cut"));
    await alice.say(`a${round}`);
    await bob.say(`b${round}`);
    all.push(`a${round}`, `b${round}`);
    await cut.restore();
    await shows("back", cut.state, "connected");
    await complete(alice, all);
    await complete(bob, all);
    assert.deepEqual(await alice.texts(), await bob.texts());
  }
  assert.equal(await alice.shown.locator(".gap").count(), 0);
  assert.deepEqual(page.problems, []);
});

test("a second tab of a customer shows the same, and new customers come by a link", async () => {
  const { url } = await server();
  const within = await context();
  const where = address(url, { session: "s", customer: "alice", agent: "bob" });
  const first = await open(where, within);
  const [alice, bob] = await meet(first, "s");
  await alice.say("from the first");
  await complete(bob, ["from the first"]);
  const second = await open(`${where}&side=customer`, within);
  const tab = customer(second);
  await complete(tab, ["from the first"]);
  await tab.say("from the second");
  for (const view of [alice, bob, tab]) await complete(view, ["from the first", "from the second"]);
  await shows("its own in both tabs", () => alice.shown.locator(".own").count(), 2);
  await bob.say("to both");
  for (const view of [alice, bob, tab]) await complete(view, ["from the first", "from the second", "to both"]);

  // Two more customers, each in a tab and a session of their own.
  const sessions = [];
  for (const text of ["second customer", "third customer"]) {
    const opened = within.waitForEvent("page");
    await first.getByRole("link", { name: "New customer" }).click();
    const page = await opened;
    await page.waitForURL(/session=/);
    sessions.push(new URL(page.url()).searchParams.get("session"));
    await customer(page).say(text);
    await complete(customer(page), [text]);
  }
  await bob.input.fill("a draft");
  await shows("they wait", () => bob.group("Waiting").innerText(), (text) => sessions.every((id) => text.includes(id)));
  await bob.choose(sessions[0]);
  await bob.say("to the second");
  await bob.choose(sessions[1]);
  await alice.say("later one", "later two");
  await shows("counted", () => bob.entry("s").innerText(), (text) => text.includes("2 unread"));
  await shows("in the title", () => first.title(), "(2) livechat-ws console");
  await bob.choose("s");
  await shows("read", () => bob.entry("s").innerText(), (text) => !text.includes("unread"));
  await shows("the draft is there", () => bob.input.inputValue(), "a draft");
  await complete(bob, ["from the first", "from the second", "to both", "later one", "later two"]);
  await bob.choose(sessions[0]);
  await complete(bob, ["second customer", "to the second"]);
  await bob.shown.getByRole("button", { name: "Leave" }).click();
  await shows("left", () => bob.group("Waiting").innerText(), (text) => text.includes(sessions[0]));
  assert.deepEqual([...first.problems, ...second.problems], []);
});

test("a server that is killed and starts again loses nothing that is on the screen", async () => {
  const port = await freePort();
  const first = await startServer({}, port);
  const page = await open(address(first.url, { session: "s" }));
  const [alice, bob] = await meet(page, "s");
  await alice.say("before one");
  await bob.say("before two");
  for (const view of [alice, bob]) await complete(view, ["before one", "before two"]);
  await first.stop("SIGKILL");
  await shows("offline", alice.state, "offline");
  await shows("and says why", () => alice.notice().innerText(), (text) => /No connection: .*Next attempt in \d+ s|Trying again/.test(text));
  await alice.say("while it is down");
  await bob.say("bob as well");
  await shows("it waits", alice.statuses, (all) => all.at(-1) === "sending");
  await server({}, port);
  const all = ["before one", "before two", "while it is down", "bob as well"];
  for (const view of [alice, bob]) await complete(view, all, 60_000);
  // The log of an embedded server ends with it: the page says so, and has loaded what came before it was back.
  const gap = () => alice.shown.locator(".gap").innerText();
  await shows("the gap", gap, (text) => /can’t be replayed: .*started again.* The history is loaded: .* found/.test(text));
  assert.deepEqual(page.problems, []);
});

test("what can't be replayed is loaded over HTTP, each message once and in its place", async () => {
  const { url } = await server({ RESUME_MAX_MESSAGES: 3 });
  const page = await open(address(url, { session: "s" }));
  const [alice, bob] = await meet(page, "s");
  await alice.say("first");
  await complete(bob, ["first"]);
  await alice.cut();
  await shows("offline", alice.state, "offline");
  const missed = Array.from({ length: 8 }, (_, n) => `missed ${n}`);
  await bob.say(...missed);
  await complete(bob, ["first", ...missed]);
  // At first the history can't be had.
  let isRefused = true;
  await page.route("**/messages?*", (route) => (isRefused ? route.fulfill({ status: 503, json: { error: "try again" } }) : route.continue()));
  await alice.restore();
  const gap = alice.shown.locator(".gap");
  await shows("why", () => gap.innerText(), (text) => text.includes("too many messages were missed") && text.includes("503: try again"));
  await bob.say("last");
  await complete(alice, ["first", "last"]);
  isRefused = false;
  await gap.getByRole("button", { name: "Load the history" }).click();
  await shows("found", () => gap.innerText(), (text) => text.includes("8 messages found"));
  await shows("in order", alice.texts, ["first", ...missed, "last"]);
  assert.equal(await gap.getByRole("button").count(), 0);
  assert.deepEqual(page.problems, []);
});

test("60 messages in a burst over the rate limit are all sent, once and in order", async () => {
  const { url } = await server();
  const page = await open(address(url, { session: "s" }));
  const [alice, bob] = await meet(page, "s");
  const burst = Array.from({ length: 60 }, (_, n) => `m${n}`);
  // As fast as a page can: pasted, and sent by Enter, without waiting for the screen.
  await alice.input.evaluate((input, texts) => {
    for (const text of texts) {
      input.value = text;
      input.form.requestSubmit();
    }
  }, burst);
  await shows("all are sent", alice.statuses, (all) => all.length === 60 && all.every((status) => status === "sent" || status === "read"), 60_000);
  await shows("in order", bob.texts, burst);
  await shows("for alice, too", alice.texts, burst);
  assert.deepEqual(page.problems, []);
});

test("tokens are asked for, and when they end others are", async () => {
  const { url } = await server({ JWT_SECRET: SECRET, JWT_LEEWAY: "0s" });
  const page = await open(address(url, { session: "s", customer: "alice", agent: "bob" }));
  const [alice, bob] = [customer(page), desk(page)];
  const of = (role, seconds) => {
    const exp = Math.floor(Date.now() / 1000) + seconds;
    return role === "customer" ? token(SECRET, { sub: "alice", role, sessions: ["s"], exp }) : token(SECRET, { sub: "bob", role, exp });
  };
  const paste = async (seconds) => {
    await page.getByRole("button", { name: "Tokens" }).click();
    await page.getByLabel("The customer’s token").fill(of("customer", seconds));
    await page.getByLabel("The agent’s token").fill(of("agent", seconds));
    await page.getByRole("button", { name: "Use these" }).click();
  };
  await shows("the customer's", () => alice.notice().innerText(), (text) => text.includes("The server wants a token (401)"));
  await shows("the agent's", () => bob.lobbyNotice().innerText(), (text) => text.includes("The lobby needs an agent’s token"));
  await paste(30);
  await meet(page, "s");
  await alice.say("with the first token");
  await complete(bob, ["with the first token"]);
  // The server tells a minute before the end, so at once.
  await shows("asked again", () => alice.notice().innerText(), (text) => text.includes("Paste another one"));
  await shows("it has ended", alice.state, (state) => state !== "connected", 60_000);
  await shows("bob's, too", bob.state, (state) => state !== "connected", 60_000);
  await alice.say("without a token");
  await bob.say("bob as well");
  await shows("it waits", alice.statuses, (all) => all.at(-1) === "sending");
  await paste(600);
  await shows("alice is back", alice.state, "connected");
  await shows("bob is back", bob.state, "connected");
  const all = ["with the first token", "without a token", "bob as well"];
  for (const view of [alice, bob]) await complete(view, all);
  await shows("no more questions", () => alice.notice().isVisible(), false);
  await shows("the lobby", bob.lobby, "lobby: connected");
  assert.deepEqual(page.problems, []);
});

test("in production without tokens the lobby is refused, in words, and the rest works", async () => {
  const { url } = await server({ ENVIRONMENT: "production", DEMO: "true" });
  const page = await open(address(url, { session: "s" }));
  const [alice, bob] = [customer(page), desk(page)];
  await shows("403", () => bob.lobbyNotice().innerText(), (text) => text.includes("The server refuses this (403)") && text.includes("agent’s token"));
  await shows("the customer is connected", alice.state, "connected");
  await alice.say("hello");
  await shows("sent", alice.statuses, ["sent"]);
  await bob.lobbyNotice().getByRole("button", { name: "Join the customer’s session" }).click();
  await shows("joined", bob.state, "connected");
  await bob.say("here");
  await shows("there", alice.texts, ["hello", "here"]);
  assert.deepEqual(page.problems, []);
});

test("in production the console is not there", async () => {
  const { url } = await server({ ENVIRONMENT: "production" });
  const page = await (await context()).newPage();
  for (const path of ["/demo", "/demo/console.js", "/demo/stats.json"]) {
    const response = await page.goto(url + path);
    assert.equal(response.status(), 404, path);
    assert.match(await page.locator("body").innerText(), /there is no such path/);
  }
});

test("who is replaced stays so until asked", async () => {
  const { url } = await server({ MAX_CONNECTIONS_PER_USER: 1 });
  const within = await context();
  const where = `${address(url, { session: "s", customer: "alice" })}&side=customer`;
  const first = customer(await open(where, within));
  await shows("connected", first.state, "connected");
  const second = customer(await open(where, within));
  await shows("connected", second.state, "connected");
  await shows("replaced", () => first.notice().innerText(), (text) => text.includes("opened elsewhere"));
  assert.equal(await first.state(), "stopped");
  await first.shown.getByRole("button", { name: "Connect here" }).click();
  await shows("back", first.state, "connected");
  await shows("and the other is replaced", second.state, "stopped");
});

test("a message that the server refuses says why, and can be sent again", async () => {
  // The page takes MAX_MESSAGE_BYTES for its default.
  const { url } = await server({ MAX_RECORD_BYTES: 2_000 });
  const page = await open(address(url, { session: "s" }));
  const alice = customer(page);
  await shows("connected", alice.state, "connected");
  await alice.say("x".repeat(3_000), "y".repeat(70_000));
  await shows("why", alice.statuses, ["not sent: it is too long for the server", "not sent: it is too long"]);
  await alice.shown.getByRole("button", { name: "Send again" }).first().click();
  await shows("again", alice.statuses, ["not sent: it is too long", "not sent: it is too long for the server"]);
  await alice.shown.getByRole("button", { name: "Discard" }).first().click();
  await alice.shown.getByRole("button", { name: "Discard" }).first().click();
  await shows("gone", alice.texts, []);
  assert.deepEqual(page.problems, []);
});

test("the operations page shows the server's figures as they are", async () => {
  const { url } = await server({ REDIS_URL: "redis://127.0.0.1:1" });
  const page = await open(address(url, { session: "s" }));
  const [alice] = [customer(page)];
  await shows("connected", alice.state, "connected");
  const value = (title) => page.locator(".figure", { has: page.getByRole("heading", { name: title }) }).locator(".value").innerText();
  await page.getByRole("button", { name: "Operations" }).click();
  await shows("two connections", () => value("Connections"), "2");
  await shows("one session", () => value("Sessions"), "1");
  await shows("one node", () => value("Nodes"), "1");
  await shows("no messages", () => value("Messages per second"), "0.0");
  const redis = page.locator('.dependency[data-name="Redis"]');
  await shows("Redis is down", () => redis.innerText(), (text) => /(degraded|connecting)[\s\S]*the connection is refused/.test(text));
  await shows("in the head", () => page.locator("[data-health]").innerText(), "server degraded");
  let writing = true;
  const writer = keep(await (await context()).newPage(), () => (writing = false));
  await writer.goto(`${address(url, { session: "s", customer: "carol" })}&side=customer`);
  const written = (async () => {
    for (let n = 0; writing && n < 200; n++) await customer(writer).say(`m${n}`);
  })();
  await shows("messages flow", () => value("Messages per second"), (text) => Number(text) > 0);
  await shows("deliveries, too", () => value("Deliveries per second"), (text) => Number(text) > 0);
  await shows("and take time", () => value("Latency"), (text) => /^[\d.]+ ms$/.test(text));
  writing = false;
  await written;
  assert.deepEqual(page.problems, []);
});

test("the keyboard is enough", async () => {
  const { url } = await server();
  const page = await open(address(url, { session: "s", customer: "alice", agent: "bob" }));
  const [alice, bob] = [customer(page), desk(page)];
  await bob.entry("s").waitFor();
  const focused = () =>
    page.evaluate(() => {
      const { activeElement: at } = document;
      return at.matches("a, button") ? at.textContent.trim() : at.localName;
    });
  await page.keyboard.press("Tab");
  await shows("the skip link first", focused, "Skip to the chat");
  await page.keyboard.press("Enter");
  const tabTo = async (name) => {
    for (let n = 0; n < 30 && !(await focused()).includes(name); n++) await page.keyboard.press("Tab");
    assert.ok((await focused()).includes(name), `${name} has the focus`);
  };
  await tabTo("waiting");
  await page.keyboard.press("Enter");
  await shows("it is open, and can be written in", () => bob.input.evaluate((input) => input === document.activeElement), true);
  await page.keyboard.type("by keyboard");
  await page.keyboard.press("Enter");
  await shows("sent", alice.texts, ["by keyboard"]);
  const outline = await bob.input.evaluate((input) => getComputedStyle(input).outlineStyle);
  assert.equal(outline, "solid", "the focus can be seen");
  await until("the log is announced", () => alice.shown.locator('[role="log"][aria-live="polite"]').count());
});
