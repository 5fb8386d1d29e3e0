// Every snippet of the pages for frontends, taken from the page and run in a browser.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { connect } from "node:net";
import { test } from "node:test";

import { build } from "esbuild";

import { startNetwork, token } from "../support.mjs";
import { keep, open, server, shows } from "./browser.mjs";

const SECRET = "0123456789abcdef0123456789abcdef";
const CLIENT = new URL("../../", import.meta.url);
const read = (path) => readFileSync(new URL(path, CLIENT), "utf8");

const GUIDE = "../docs/FRONTEND.md";
const README = "README.md";

/** The code blocks of a page in the languages of a browser. */
function snippets(page) {
  return [...read(page).matchAll(/^```(html|js|jsx)\n([\s\S]*?)^```$/gm)].map(([, language, text]) => ({ language, text }));
}

/** The one that holds this. */
function snippet(page, language, mark) {
  const found = snippets(page).filter((each) => each.language === language && each.text.includes(mark));
  assert.equal(found.length, 1, `one ${language} in ${page} with ${mark}`);
  used.add(`${page} ${found[0].text}`);
  return found[0].text;
}
const used = new Set();

/** Serves a page of somebody's own; what it does not know itself it passes on to the chat server. */
async function site(files, chat) {
  const types = { html: "text/html", js: "text/javascript", txt: "text/plain" };
  const listener = createServer((incoming, outgoing) => {
    const path = new URL(incoming.url, "http://localhost").pathname;
    const file = files[path];
    if (file === undefined) {
      const options = { port: chat.port, host: "127.0.0.1", path: incoming.url, method: incoming.method, headers: incoming.headers };
      const passed = request(options, (answer) => answer.pipe(outgoing.writeHead(answer.statusCode, answer.headers)));
      passed.on("error", () => outgoing.destroy());
      incoming.pipe(passed);
      return;
    }
    outgoing.setHeader("Content-Type", `${types[path.split(".")[1] ?? "html"]}; charset=utf-8`);
    outgoing.end(typeof file === "function" ? file() : file);
  });
  listener.on("upgrade", (incoming, socket, head) => {
    const to = connect(chat.port, "127.0.0.1");
    const lines = [];
    for (let at = 0; at < incoming.rawHeaders.length; at += 2) lines.push(`${incoming.rawHeaders[at]}: ${incoming.rawHeaders[at + 1]}`);
    to.write(`GET ${incoming.url} HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`);
    to.write(head);
    to.pipe(socket).pipe(to);
    for (const each of [to, socket]) each.on("error", () => (to.destroy(), socket.destroy()));
  });
  listener.listen(0, "127.0.0.1");
  await new Promise((done) => listener.once("listening", done));
  keep(listener, () => (listener.closeAllConnections(), listener.close()));
  return `http://127.0.0.1:${listener.address().port}`;
}

/** The problems of a page that calls another origin, as these do. */
const real = (page) => page.problems.filter((problem) => !problem.startsWith("foreign"));

const bundle = async (contents, loader = "jsx") => {
  const alias = { "livechat-ws-client": new URL("src/index.js", CLIENT).pathname };
  const stdin = { contents, loader, resolveDir: CLIENT.pathname };
  const options = { bundle: true, write: false, format: "iife", jsx: "automatic", alias, define: { "process.env.NODE_ENV": '"development"' } };
  return (await build({ stdin, ...options })).outputFiles[0].text;
};

const plainPage = (url) => snippet(GUIDE, "html", "<!doctype html>").replaceAll("http://localhost:8082", url);

const rowsOf = (page) => page.locator("#messages li").allInnerTexts();
const write = async (page, text) => {
  await page.locator("#text").fill(text);
  await page.locator("#text").press("Enter");
};

test("the page of your own: two users chat, over a reload and a cut", async () => {
  const chat = await server();
  const network = await startNetwork(chat.port);
  keep(network, () => network.close());
  const files = (url) => ({ "/": plainPage(url), "/livechat.js": read("dist/livechat.js"), "/favicon.ico": "" });
  const alice = await open(`${await site(files(network.url), chat)}/?user=alice`);
  const bob = await open(`${await site(files(chat.url), chat)}/?user=bob`);
  await write(alice, "Hello");
  await shows("bob has it, and alice is told that it is read", () => rowsOf(alice), ["Hello (read)"]);
  await shows("bob", () => rowsOf(bob), ["alice: Hello"]);
  await write(bob, "Hi");
  await shows("alice", () => rowsOf(alice), ["Hello (read)", "bob: Hi"]);
  network.cut();
  await shows("offline", () => alice.locator("#state").innerText(), (text) => text.startsWith("offline"));
  await write(alice, "offline");
  await write(bob, "meanwhile");
  await shows("it waits", () => rowsOf(alice), (rows) => rows.at(-1) === "offline (sending)");
  await alice.reload();
  await shows("it still waits", () => rowsOf(alice), ["offline (sending)"]);
  network.restore();
  await shows("all is there", async () => (await rowsOf(alice)).sort(), ["Hello", "bob: Hi", "bob: meanwhile", "offline (read)"]);
  await shows("for bob, too", () => rowsOf(bob), ["alice: Hello", "Hi (read)", "meanwhile (read)", "alice: offline"]);
  assert.deepEqual([...real(alice), ...real(bob)], []);
});

test("what can't be replayed is loaded over HTTP", async () => {
  const chat = await server({ RESUME_MAX_MESSAGES: 3 });
  const network = await startNetwork(chat.port);
  keep(network, () => network.close());
  const gap = snippet(GUIDE, "js", 'chat.on("gap"').replaceAll("http://localhost:8082", network.url);
  const files = (url, more = "") => ({ "/": `${plainPage(url)}<script>${more}</script>`, "/livechat.js": read("dist/livechat.js"), "/favicon.ico": "" });
  const alice = await open(`${await site(files(network.url, gap), chat)}/?user=alice`);
  const bob = await open(`${await site(files(chat.url), chat)}/?user=bob`);
  await write(alice, "first");
  await shows("bob", () => rowsOf(bob), ["alice: first"]);
  network.cut();
  await shows("offline", () => alice.locator("#state").innerText(), (text) => text.startsWith("offline"));
  const missed = Array.from({ length: 8 }, (_, n) => `m${n}`);
  for (const text of missed) await write(bob, text);
  await shows("all are sent", () => rowsOf(bob), (rows) => rows.filter((row) => row.endsWith("(sent)")).length === 8);
  network.restore();
  await shows("alice has them", () => rowsOf(alice), (rows) => rows.length === 9);
  await write(bob, "last");
  const shown = ["first (read)", ...missed.map((text) => `bob: ${text}`), "bob: last"];
  await shows("each once and in order", () => rowsOf(alice), shown);
  assert.deepEqual([...real(alice), ...real(bob)], []);
});

test("the React hook", async () => {
  const chat = await server();
  const hook = snippet(GUIDE, "jsx", "export function useLiveChat");
  const page = `${hook}
    import { StrictMode } from "react";
    import { createRoot } from "react-dom/client";
    const user = new URLSearchParams(location.search).get("user");
    function Chat() {
      const { state, messages, outbox, send } = useLiveChat({ url: "${chat.url}", session: "demo", user, type: "customer" });
      const submit = (event) => {
        event.preventDefault();
        send(event.target.elements.text.value);
        event.target.reset();
      };
      return <>
        <p id="state">{state.state}</p>
        <ul id="messages">{messages.map((m) => <li key={m.message_id}>{m.sender_id}: {m.message}</li>)}</ul>
        <ul id="outbox">{outbox.map((entry) => <li key={entry.client_message_id}>{entry.message}</li>)}</ul>
        <form onSubmit={submit}><input id="text" name="text" /></form>
      </>;
    }
    createRoot(document.getElementById("root")).render(<StrictMode><Chat /></StrictMode>);`;
  const files = { "/": '<!doctype html><title>React</title><div id="root"></div><script src="app.js"></script>', "/app.js": await bundle(page), "/favicon.ico": "" };
  const where = await site(files, chat);
  const alice = await open(`${where}/?user=alice`);
  const bob = await open(`${where}/?user=bob`);
  for (const each of [alice, bob]) await shows("live", () => each.locator("#state").innerText(), "live");
  await write(alice, "Hello");
  await shows("bob has it", () => rowsOf(bob), ["alice: Hello"]);
  await write(bob, "Hi");
  for (const each of [alice, bob]) {
    await shows("both, once", () => rowsOf(each), ["alice: Hello", "bob: Hi"]);
    await shows("nothing waits", () => each.locator("#outbox li").count(), 0);
  }
  await alice.reload();
  await shows("again", () => rowsOf(alice), ["alice: Hello", "bob: Hi"]);
  assert.deepEqual([...real(alice), ...real(bob)], []);
});

test("tokens are renewed before they end, without a break", async () => {
  const chat = await server({ JWT_SECRET: SECRET, JWT_LEEWAY: "0s" });
  let given = 0;
  const next = () => {
    const exp = Math.floor(Date.now() / 1000) + (given++ ? 600 : 12);
    return token(SECRET, { sub: "alice", role: "customer", sessions: ["s1"], exp });
  };
  const start = snippet(GUIDE, "js", "/chat-token");
  const shown = `
    const log = (text) => document.getElementById("log").append(Object.assign(document.createElement("li"), { textContent: text }));
    chat.on("state", ({ state, reason }) => log(state + (reason ? " " + reason : "")));
    chat.on("authenticated", () => log("renewed"));
    chat.on("message", ({ message }) => log("message " + message));
    chat.start();
    setTimeout(() => chat.send("after the first token's end"), 14000);`;
  const page = `<!doctype html><title>Tokens</title><ul id="log"></ul><script src="livechat.js"></script><script>${start}${shown}</script>`;
  const files = { "/": page, "/livechat.js": read("dist/livechat.js"), "/chat-token": next, "/favicon.ico": "" };
  const alice = await open(await site(files, chat));
  const log = () => alice.locator("#log li").allInnerTexts();
  await shows("no break", log, (lines) => lines.includes("message after the first token's end"), 60_000);
  const lines = await log();
  assert.deepEqual(lines.filter((line) => !line.startsWith("message")), ["connecting", "resuming", "live", "renewed"]);
  assert.equal(given, 2);
  assert.deepEqual(real(alice), []);
});

test("a page of an origin that the server does not allow is told so", async () => {
  const chat = await server({ ENVIRONMENT: "production", ALLOWED_ORIGINS: "https://shop.example" });
  const start = `new LiveChat({ url: "${chat.url}", session: "s", user: "u", type: "customer" })`;
  const script = `const chat = ${start}; chat.on("state", ({ state, reason }) => (document.title = state + " " + reason)); chat.start();`;
  const page = `<!doctype html><title>Elsewhere</title><script src="livechat.js"></script><script>${script}</script>`;
  const files = { "/": page, "/livechat.js": read("dist/livechat.js"), "/favicon.ico": "" };
  const elsewhere = await open(await site(files, chat));
  await shows("the reason", () => elsewhere.title(), "offline origin");
});

test("the client's own page: by a script tag, and as a module", async () => {
  const chat = await server();
  const byTag = snippet(README, "html", "livechat.js").replaceAll("https://chat.example.com", chat.url);
  const asModule = await bundle(`${snippet(README, "js", "import { LiveChat }")}\ndocument.body.append(typeof LiveChat + " " + (LiveChat === window.LiveChat));`, "js");
  const html = `<!doctype html><title>README</title><body>${byTag}</body>`;
  const files = { "/": html, "/module": '<!doctype html><title>Module</title><body><script src="module.js"></script>', "/module.js": asModule, "/livechat.js": read("dist/livechat.js"), "/favicon.ico": "" };
  const where = await site(files, chat);
  const said = [];
  const page = await open("about:blank");
  page.on("console", (message) => said.push(message.text()));
  await page.goto(where);
  await shows("what it logs", () => said, (lines) => lines.includes("alice: Hello") && lines.some((line) => line.startsWith("live")));
  await page.goto(`${where}/module`);
  await shows("a class", () => page.locator("body").innerText(), "function false");
});

test("no snippet was left out", () => {
  const all = [GUIDE, README].flatMap((page) => snippets(page).map(({ text }) => `${page} ${text}`));
  assert.ok(all.length >= 6);
  assert.deepEqual(all.filter((each) => !used.has(each)), []);
});
