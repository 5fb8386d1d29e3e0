// Takes the pictures of docs/CONSOLE.md: node pictures.mjs FOLDER, with the server in LIVECHAT_SERVER.

import { join } from "node:path";

import { chromium } from "playwright-core";

import { startServer, until } from "./test/support.mjs";

const folder = process.argv[2] ?? "../docs/images";
const server = await startServer();
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const SECONDS = Number(process.env.PICTURE_SECONDS ?? 60);

try {
  const wide = { width: 1280, height: 760 };
  const context = await browser.newContext({ viewport: wide, locale: "en-GB", timezoneId: "UTC" });
  const page = await context.newPage();
  const take = async (name) => {
    await page.mouse.move(0, 0);
    await page.screenshot({ path: join(folder, `console-${name}.png`), animations: "disabled" });
  };
  const of = (target, pane) => target.locator(`[data-pane="${pane}"] .conversation:not([hidden]) textarea`);
  const say = async (target, pane, ...texts) => {
    for (const text of texts) {
      await of(target, pane).fill(text);
      await of(target, pane).press("Enter");
    }
    await target.waitForTimeout(150);
  };
  const connected = (target) => until("connected", async () => (await target.locator('[data-pane="customer"] [data-state]').innerText()) === "connected");
  const choose = async (session) => {
    await page.locator(`button[data-session="${session}"]`).click();
    await page.locator(`[data-pane="desk"] .conversation[data-session="${session}"]:not([hidden])`).waitFor();
  };

  await page.goto(`${server.url}/demo?session=order-1042&customer=alice&agent=bob`);
  await connected(page);
  const others = [];
  for (const [session, customer] of [["order-1043", "customer-17"], ["invoice-7", "customer-18"], ["returns-12", "customer-19"]]) {
    const other = await context.newPage();
    await other.goto(`${server.url}/demo?side=customer&session=${session}&customer=${customer}`);
    await connected(other);
    others.push(other);
  }
  await page.bringToFront();
  await choose("order-1043");
  await choose("order-1042");
  await say(page, "customer", "Hello, my order has not arrived yet.");
  await say(page, "desk", "Hi! Let me have a look.", "It left our house this morning and is with you tomorrow.");
  await say(page, "customer", "That is great, thank you!");
  await say(others[0], "customer", "Can I still change the size?", "I need an M instead of an L.");
  await of(page, "desk").pressSequentially("You are wel");
  await of(page, "customer").pressSequentially("One more th");
  await page.waitForTimeout(400);
  await take("desktop");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.getByRole("button", { name: "Cut network" }).first().click();
  await say(page, "customer", "One more thing: can I have the invoice, too?");
  await page.waitForTimeout(1_500);
  await take("dark");
  await page.getByRole("button", { name: "Restore network" }).first().click();
  await page.emulateMedia({ colorScheme: "light" });

  // Something to see in the figures.
  await page.getByRole("button", { name: "Operations" }).click();
  const end = Date.now() + SECONDS * 1_000;
  for (let n = 0; Date.now() < end; n++) {
    await say(others[n % others.length], "customer", `Message ${n}`);
    await others[0].waitForTimeout(60 + 500 * Math.abs(Math.sin(n / 23)));
  }
  await page.bringToFront();
  await take("operations");

  await page.getByRole("button", { name: "Chat" }).click();
  await page.setViewportSize({ width: 390, height: 780 });
  await connected(page);
  await page.waitForTimeout(500);
  await take("phone");
} finally {
  await browser.close();
  await server.stop();
}
