// The agent's desk: the lobby as a list, and a conversation for each session that the agent has joined.

import { LiveChat } from "./livechat.mjs";
import { Conversation } from "./conversation.js";
import { cutButton } from "./network.js";
import { announce, button, element, find, notice, say } from "./ui.js";
import { clock, list, stateLabel, why } from "./words.js";

const GROUPS = [
  ["waiting", "Waiting"],
  ["joined", "My conversations"],
  ["active", "With other agents"],
];

/** Events: `change`, and `token` when the server wants one. */
export class Desk extends EventTarget {
  #root;
  #options;
  #lobby;
  #connection;
  #retryAt = 0;
  /** By session: `{id, state, since, conversation?, item}`. */
  #sessions = new Map();
  #groups = {};
  #open;
  #hasMore = false;

  /** `{user, network, tokens, session}`: `session` is the one on the customer's side. */
  constructor(root, options) {
    super();
    this.#root = root;
    this.#options = options;
    const { user, network } = options;
    say(find(root, "who"), user);
    cutButton(find(root, "cut"), network);
    for (const [name, title] of GROUPS) {
      const items = element("ul", { "aria-labelledby": `group-${name}` });
      const heading = element("h3", { id: `group-${name}` }, title);
      const group = element("section", { class: `group ${name}`, hidden: true }, heading, items);
      this.#groups[name] = { group, items, heading, title };
      find(root, "groups").append(group);
    }
    find(root, "groups").addEventListener("keydown", (event) => this.#arrow(event));
    find(root, "join").addEventListener("submit", (event) => {
      event.preventDefault();
      const id = event.target.elements.id.value.trim();
      // The lobby is no session.
      if (id && id !== "@lobby") this.join(id);
      event.target.reset();
    });
    network.addEventListener("change", () => !network.isCut && this.#lobby.retry());
    options.tokens.addEventListener("needed", () => this.#show());
    this.#connect();
    for (const id of this.#joinedBefore()) this.#joinQuietly(id);
    setInterval(() => this.#tick(), 1_000);
    this.#draw();
  }

  get waiting() {
    return [...this.#sessions.values()].filter((session) => group(session) === "waiting").length;
  }

  get unread() {
    return [...this.#sessions.values()].reduce((sum, { conversation }) => sum + (conversation?.unread ?? 0), 0);
  }

  /** Opens a session's conversation, and joins it if need be. */
  join(id) {
    const session = this.#joinQuietly(id);
    this.#select(session);
    session.conversation.focus();
  }

  /** With another token; `onlyStopped`: those that wait for it go on by themselves. */
  restart(onlyStopped = false) {
    if (!onlyStopped || this.#lobby.state.state === "stopped") {
      this.#lobby.stop();
      this.#connect();
    }
    for (const { conversation } of this.#sessions.values()) conversation?.restart(onlyStopped);
  }

  see() {
    this.#open?.conversation?.see();
  }

  #connect() {
    const { user, network, tokens } = this.#options;
    const connection = (this.#connection = network.connection());
    const { WebSocket, fetch } = connection;
    const options = { session: "@lobby", user, type: "agent", history: 0, storage: null };
    const lobby = new LiveChat({ ...options, WebSocket, fetch, token: tokens.provider() });
    this.#lobby = lobby;
    lobby.on("state", (state) => {
      if (lobby !== this.#lobby) return;
      this.#retryAt = Date.now() + (state.retryInMs ?? 0);
      this.#show();
    });
    lobby.on("lobby_snapshot", ({ sessions, has_more }) => this.#snapshot(sessions, has_more));
    for (const name of ["session_waiting", "session_active", "session_ended"]) {
      lobby.on(name, (data) => {
        if (name === "session_waiting" && !this.#sessions.get(data.session_id)?.conversation) {
          announce(`A customer waits in session ${data.session_id}`);
        }
        this.#update(data);
        this.#draw();
      });
    }
    lobby.start();
  }

  #snapshot(sessions, hasMore) {
    this.#hasMore = hasMore;
    const listed = new Set(sessions.map(({ session_id }) => session_id));
    for (const [id, { since }] of this.#sessions) {
      if (!listed.has(id)) this.#update({ session_id: id, state: "idle", since });
    }
    for (const session of sessions) this.#update(session);
    this.#draw();
  }

  #update({ session_id, state, since }) {
    const known = this.#sessions.get(session_id);
    if (state === "idle" && !known?.conversation) {
      known?.item.remove();
      this.#sessions.delete(session_id);
      return;
    }
    const session = known ?? this.#add(session_id);
    Object.assign(session, { state, since: Date.parse(since) });
  }

  #add(id) {
    const parts = {
      name: element("span", { class: "name" }, id),
      badge: element("span", { class: "badge", hidden: true }),
      last: element("span", { class: "last" }),
      time: element("span", { class: "time" }),
    };
    const open = element("button", { type: "button", class: "session", onclick: () => this.join(id) });
    open.append(parts.name, parts.badge, parts.last, parts.time);
    const session = { id, state: undefined, since: Date.now(), item: element("li", {}, open), button: open, parts };
    open.dataset.session = id;
    this.#sessions.set(id, session);
    return session;
  }

  #joinQuietly(id) {
    const session = this.#sessions.get(id) ?? this.#add(id);
    if (session.conversation) return session;
    const { user, network, tokens } = this.#options;
    const options = { session: id, user, type: "agent", title: id, network, tokens, canLeave: true };
    const conversation = (session.conversation = new Conversation(options));
    conversation.isOpen = false;
    conversation.root.hidden = true;
    conversation.addEventListener("change", () => this.#changed());
    conversation.addEventListener("leave", () => this.#leave(session));
    conversation.addEventListener("back", () => this.#select(undefined));
    conversation.addEventListener("token", () => this.dispatchEvent(new Event("token")));
    find(this.#root, "conversations").append(conversation.root);
    this.#remember();
    this.#draw();
    return session;
  }

  #select(session) {
    for (const { conversation } of this.#sessions.values()) {
      if (!conversation) continue;
      conversation.isOpen = conversation === session?.conversation;
      conversation.root.hidden = !conversation.isOpen;
    }
    const before = this.#open;
    this.#open = session;
    this.#root.dataset.open = Boolean(session);
    find(this.#root, "empty").hidden = Boolean(session);
    this.see();
    this.#draw();
    if (!session) before?.button.focus();
  }

  #leave(session) {
    session.conversation.stop();
    session.conversation.root.remove();
    session.conversation = undefined;
    if (session.state === "idle" || session.state === undefined) {
      session.item.remove();
      this.#sessions.delete(session.id);
    }
    if (this.#open === session) this.#select(undefined);
    this.#remember();
    this.#draw();
  }

  get #key() {
    return `console:joined:${this.#options.user}`;
  }

  #joinedBefore() {
    try {
      const joined = JSON.parse(sessionStorage.getItem(this.#key));
      return Array.isArray(joined) ? joined.filter((id) => typeof id === "string") : [];
    } catch {
      // The storage is forbidden, or somebody else has written there.
      return [];
    }
  }

  #remember() {
    const joined = [...this.#sessions.values()].filter(({ conversation }) => conversation);
    try {
      sessionStorage.setItem(this.#key, JSON.stringify(joined.map(({ id }) => id)));
    } catch {
      // Then a reload joins none again.
    }
  }

  // The screen. Changes within one task are drawn once.

  #isDue = false;

  #changed() {
    if (this.#isDue) return;
    this.#isDue = true;
    queueMicrotask(() => {
      this.#isDue = false;
      this.#draw();
    });
  }

  #draw() {
    const focused = document.activeElement;
    const sessions = [...this.#sessions.values()].sort((a, b) => a.since - b.since || (a.id < b.id ? -1 : 1));
    for (const [name] of GROUPS) {
      const { group: section, items, heading, title } = this.#groups[name];
      const members = sessions.filter((session) => group(session) === name);
      section.hidden = members.length === 0;
      say(heading, `${title} (${members.length})`);
      members.forEach(({ item }, at) => {
        if (items.children[at] !== item) items.insertBefore(item, items.children[at] ?? null);
      });
      for (const session of members) this.#drawItem(session);
    }
    // An item that has moved to another group keeps the focus.
    if (focused !== document.activeElement && focused?.isConnected) focused.focus();
    const text = this.#sessions.size
      ? "Choose a session to join it."
      : "Customers who wait are listed here. Write something as the customer, then choose the session.";
    say(find(this.#root, "empty-text"), this.#hasMore ? `${text} There are more than are listed.` : text);
    this.#tick();
    this.dispatchEvent(new Event("change"));
  }

  #drawItem(session) {
    const { parts, conversation, button: open } = session;
    const unread = conversation?.unread ?? 0;
    parts.badge.hidden = unread === 0;
    say(parts.badge, unread ? `${unread} unread` : "");
    const { last, typists = [] } = conversation ?? {};
    const said = last ? `${last.isOwn ? "You: " : ""}${last.text}` : "";
    say(parts.last, typists.length ? `${list(typists)} ${typists.length > 1 ? "are" : "is"} typing …` : said);
    open.classList.toggle("is-typing", typists.length > 0);
    open.dataset.state = session.state ?? "";
    if (session === this.#open) open.setAttribute("aria-current", "true");
    else open.removeAttribute("aria-current");
  }

  /** How long each session is in its state. */
  #tick() {
    for (const { state, since, parts, conversation } of this.#sessions.values()) {
      const words = { waiting: "waiting", active: "active", idle: "no customer" }[state] ?? "";
      const offline = conversation && !["live", "resuming"].includes(conversation.state.state);
      say(parts.time, offline ? stateLabel(conversation.state) : words && `${words} ${clock(Date.now() - since)}`);
    }
    this.#show();
  }

  #show() {
    const { state } = this.#lobby;
    const pill = find(this.#root, "lobby");
    say(pill, `lobby: ${stateLabel(state)}`);
    pill.dataset.is = state.state;
    const place = find(this.#root, "lobby-notice");
    const { status } = this.#connection;
    const token = button("Paste a token", () => this.dispatchEvent(new Event("token")), "primary");
    if (this.#options.tokens.isNeeded || (state.state === "stopped" && status === 401)) {
      return notice(place, "The lobby needs an agent’s token.", token);
    }
    if (state.state === "offline") {
      const seconds = Math.ceil((this.#retryAt - Date.now()) / 1000);
      const next = seconds > 0 ? `Next attempt in ${seconds} s.` : "Trying again.";
      return notice(place, `The list is as it was: the lobby is offline. ${next}`);
    }
    if (state.state === "stopped" && status === 403) {
      const { session } = this.#options;
      const text = `${why(state, 403)} The lobby shows session ids, so in production it needs an agent’s token. Without one you can join a session whose id you know.`;
      return notice(place, text, token, button("Join the customer’s session", () => this.join(session)));
    }
    if (state.state === "stopped") return notice(place, why(state, status), button("Try again", () => this.restart()));
    notice(place, undefined);
  }

  /** Up and down go through the list. */
  #arrow(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const all = [...find(this.#root, "groups").querySelectorAll("section:not([hidden]) button")];
    const next = all[all.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }
}

const group = ({ state, conversation }) => (conversation ? "joined" : state);
