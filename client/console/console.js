// The console: a customer's widget and an agent's desk on one page, and the server's figures.

import { customerPane } from "./customer.js";
import { Desk } from "./desk.js";
import { Network } from "./network.js";
import { Operations } from "./operations.js";
import { Tokens, tokenDialog } from "./tokens.js";
import { find } from "./ui.js";

const random = () => Math.random().toString(36).slice(2, 6).padEnd(4, "0");

/** Who is who stands in the address: a reload keeps it, and a copy of the address is a second tab. */
function identity() {
  const address = new URL(location.href);
  const get = (name, make) => {
    if (!address.searchParams.get(name)) address.searchParams.set(name, make());
    return address.searchParams.get(name);
  };
  const side = address.searchParams.get("side");
  const who = {
    side: side === "customer" || side === "agent" ? side : "both",
    session: get("session", () => `demo-${random()}`),
    customer: get("customer", () => `customer-${random()}`),
    agent: get("agent", () => `agent-${random()}`),
  };
  history.replaceState(null, "", address);
  return who;
}

const { side, session, customer, agent } = identity();
const tokens = { customer: new Tokens(), agent: new Tokens() };
const pane = (name) => document.querySelector(`[data-pane="${name}"]`);
document.body.dataset.side = side;

let widget;
let desk;
if (side !== "agent") {
  widget = customerPane(pane("customer"), { session, user: customer, network: new Network(), tokens: tokens.customer });
  widget.addEventListener("change", drawTitle);
  widget.addEventListener("token", () => askTokens("customer"));
}
if (side !== "customer") {
  desk = new Desk(pane("desk"), { user: agent, network: new Network(), tokens: tokens.agent, session });
  desk.addEventListener("change", drawTitle);
  desk.addEventListener("token", () => askTokens("agent"));
}
new Operations(pane("operations"));

// Views.

const views = ["customer", "desk", "operations"];
const first = side === "agent" ? "desk" : "customer";

function show(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("[data-go]")) {
    const isWideChat = button.classList.contains("wide") && view !== "operations";
    if (button.dataset.go === view || isWideChat) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  see();
}

/** What has come into sight is read. */
function see() {
  widget?.see();
  desk?.see();
}

const wanted = () => (views.includes(location.hash.slice(1)) ? location.hash.slice(1) : first);
for (const button of document.querySelectorAll("[data-go]")) {
  const isOther = { customer: side === "agent" && button.classList.contains("narrow"), desk: side === "customer" };
  button.hidden = Boolean(isOther[button.dataset.go]);
  button.addEventListener("click", () => {
    const go = button.classList.contains("wide") ? first : button.dataset.go;
    location.hash = go === first ? "" : go;
    show(go);
  });
}
addEventListener("hashchange", () => show(wanted()));
addEventListener("resize", see);
document.addEventListener("visibilitychange", see);
show(wanted());

function drawTitle() {
  const unread = (widget?.unread ?? 0) + (desk?.unread ?? 0);
  document.title = `${unread ? `(${unread}) ` : ""}livechat-ws console`;
  const badge = find(document, "waiting");
  const waiting = desk?.waiting ?? 0;
  badge.hidden = waiting === 0;
  badge.textContent = waiting || "";
}

// Tokens.

const dialogSides = {
  customer: { tokens: tokens.customer, needs: () => `For the user ${customer}, role customer, session ${session}.` },
  agent: { tokens: tokens.agent, needs: () => `For the user ${agent}, role agent, all sessions.` },
};
const askTokens = tokenDialog(dialogSides, (changed, wasAwaited) => {
  // Chats that wait for a token go on with it; without any, all begin anew.
  (changed === "customer" ? widget : desk)?.restart(wasAwaited);
});
find(document, "open-tokens").addEventListener("click", () => askTokens(side === "agent" ? "agent" : "customer"));
drawTitle();
