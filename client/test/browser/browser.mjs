// A browser, and what is on its screen: tests judge by what a person would see.

import assert from "node:assert/strict";
import { after } from "node:test";

import { chromium } from "playwright-core";

import { startServer, until } from "../support.mjs";

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const closing = [];
after(async () => {
  for (const close of closing.reverse()) await close();
});
export const keep = (value, close) => (closing.push(close), value);

let launched;
/** One for each test file; its profile is new and is removed with it. */
export function browser() {
  launched ??= chromium
    .launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ARGUMENTS })
    .then((started) => keep(started, () => started.close()));
  return launched;
}

/** A context of its own: nothing is shared with others. */
export async function context(options = {}) {
  const made = await (await browser()).newContext({ viewport: { width: 1280, height: 800 }, ...options });
  made.setDefaultTimeout(60_000);
  return keep(made, () => made.close());
}

export async function server(env = {}, port) {
  const started = await startServer(env, port);
  return keep(started, () => started.stop());
}

let number = 0;
/** The console's address, with everybody named. */
export function address(url, names = {}) {
  const id = ++number;
  const query = { session: `s${id}`, customer: `alice${id}`, agent: `bob${id}`, ...names };
  return `${url}/demo?${new URLSearchParams(query)}`;
}

/** Opens a page; its `problems` are errors, violations of the policy and requests to other hosts. */
export async function open(where, within) {
  const page = await (within ?? (await context())).newPage();
  const problems = [];
  const { host } = new URL(where);
  page.on("pageerror", (error) => problems.push(`error: ${error.stack}`));
  page.on("request", (request) => new URL(request.url()).host === host || problems.push(`foreign: ${request.url()}`));
  page.on("websocket", (socket) => new URL(socket.url()).host === host || problems.push(`foreign: ${socket.url()}`));
  page.on("console", (message) => {
    const text = message.text();
    if (/Content.Security.Policy|Trusted/i.test(text)) problems.push(text);
    else if (message.type() === "error" && !isOfTheNetwork(text)) problems.push(text);
  });
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
      console.error(`Content-Security-Policy: ${violatedDirective} ${blockedURI}`);
    });
  });
  await page.goto(where);
  return Object.assign(page, { problems });
}

/** Servers are killed, networks cut, and refusals asked for. */
const isOfTheNetwork = (text) => /WebSocket connection|Failed to load resource/.test(text);

/** One side of the console. */
export function side(page, name) {
  const pane = page.locator(`[data-pane="${name}"]`);
  const shown = pane.locator(".conversation:not([hidden])");
  const input = shown.locator("textarea");
  return {
    pane,
    shown,
    input,
    state: () => shown.locator("[data-state]").first().innerText(),
    notice: () => shown.locator("[data-notice]"),
    texts: () => shown.locator(".message .text").allInnerTexts(),
    statuses: () => shown.locator(".own .status").allInnerTexts(),
    typing: () => shown.locator("[data-typing]").innerText(),
    async say(...texts) {
      for (const text of texts) {
        await input.fill(text);
        await input.press("Enter");
      }
    },
    cut: () => pane.getByRole("button", { name: "Cut network" }).click(),
    restore: () => pane.getByRole("button", { name: "Restore network" }).click(),
  };
}

export const customer = (page) => side(page, "customer");

/** The desk, whose sessions are chosen from a list. */
export function desk(page) {
  const pane = page.locator('[data-pane="desk"]');
  const entry = (session) => pane.locator(`button[data-session="${session}"]`);
  return {
    ...side(page, "desk"),
    entry,
    lobby: () => pane.locator("[data-lobby]").innerText(),
    lobbyNotice: () => pane.locator("[data-lobby-notice]"),
    group: (title) => pane.locator(".group", { has: page.getByRole("heading", { name: title }) }),
    async choose(session) {
      await entry(session).click();
      await pane.locator(`.conversation:not([hidden])[data-session="${session}"]`).waitFor();
    },
  };
}

const show = (value) => JSON.stringify(value);

/** Waits until the screen shows this. */
export async function shows(what, read, expected, ms) {
  let seen;
  const isThere = async () => {
    seen = await read();
    return typeof expected === "function" ? expected(seen) : show(seen) === show(expected);
  };
  await until(what, isThere, ms).catch(() => {
    assert.fail(`${what}: on the screen is ${show(seen)}${typeof expected === "function" ? "" : `, not ${show(expected)}`}`);
  });
}

/** Each of these texts is there once, none is on its way or has failed. */
export async function complete(view, expected, ms) {
  const sorted = [...expected].sort();
  await shows("each message is there once", async () => (await view.texts()).sort(), sorted, ms);
  await shows("none is on its way", view.statuses, (all) => all.every((status) => status === "sent" || status === "read"), ms);
}

/** Both sides are connected, in one session, and see each other. */
export async function meet(page, session) {
  const [alice, bob] = [customer(page), desk(page)];
  await bob.choose(session);
  await shows("the customer is connected", alice.state, "connected");
  await shows("the agent is connected", bob.state, "connected");
  return [alice, bob];
}
