// One conversation on the screen: a chat of the client library, its messages and their states, and a field to write in.

import { LiveChat } from "./livechat.mjs";
import { announce, button, element, find, isVisible, notice, say } from "./ui.js";
import { failure, gap, list, stateLabel, time, why } from "./words.js";

let count = 0;

const textOf = ({ message, attachments }) =>
  message || (attachments?.length ? `(attachments: ${attachments.length})` : "(empty)");

/**
 * Events: `change` (unread, typing, state or last message), `leave`, `back`, and `token` when the server wants one.
 */
export class Conversation extends EventTarget {
  unread = 0;
  typists = [];
  last;
  isOpen = true;
  #options;
  #chat;
  #connection;
  #rows = [];
  #ids = new Set();
  /** By sender and client_message_id: a message that was sent twice is shown once. */
  #byClientId = new Map();
  #parts;
  #newestRead;
  #staysAtEnd = true;
  #offlineUntil = 0;
  #slow;

  /** `{session, user, type, title, network, tokens}` */
  constructor(options) {
    super();
    this.#options = options;
    const root = document.querySelector("#conversation").content.cloneNode(true).firstElementChild;
    const names = ["title", "online", "state", "notice", "messages", "newest", "typing", "leave", "back"];
    this.#parts = Object.fromEntries(names.map((name) => [name, find(root, name)]));
    Object.assign(this.#parts, { root, log: root.querySelector(".log"), form: root.querySelector("form") });
    this.#parts.input = root.querySelector("textarea");
    this.#prepare();
    this.#connect();
  }

  get root() {
    return this.#parts.root;
  }

  get state() {
    return this.#chat.state;
  }

  focus() {
    this.#parts.input.focus();
  }

  /** The server wants a token, and none that it takes is there. */
  get needsToken() {
    return this.#options.tokens.isNeeded || (this.state.state === "stopped" && this.#connection.status === 401);
  }

  stop() {
    this.#options.network.removeEventListener("change", this.#networkChanged);
    this.#options.tokens.removeEventListener("needed", this.#show);
    clearInterval(this.#slow);
    this.#chat.stop();
  }

  /** With another token, or after a refusal; `onlyStopped`: a chat that waits for a token goes on by itself. */
  restart(onlyStopped = false) {
    if (onlyStopped && this.state.state !== "stopped") return;
    this.#chat.stop();
    this.#connect();
  }

  /** What is on the screen counts as read. */
  see() {
    if (!this.isOpen || !isVisible(this.root)) return;
    const newest = this.#rows.findLast(({ isPlaced, isOwn }) => isPlaced && !isOwn);
    if (newest && newest.id !== this.#newestRead) {
      this.#newestRead = newest.id;
      this.#chat.read(newest.id);
    }
    this.#count();
  }

  #prepare() {
    const { session, user, type, title, network, tokens, canLeave } = this.#options;
    const { root, log, form, input, leave, back, newest } = this.#parts;
    const id = `message-${++count}`;
    root.setAttribute("aria-label", `Conversation ${title}`);
    root.dataset.session = session;
    log.setAttribute("aria-label", `Messages of ${title}`);
    form.querySelector("label").htmlFor = input.id = id;
    say(this.#parts.title, title);
    leave.hidden = !canLeave;
    if (!canLeave) back.remove();
    leave.addEventListener("click", () => this.dispatchEvent(new Event("leave")));
    back.addEventListener("click", () => this.dispatchEvent(new Event("back")));
    newest.addEventListener("click", () => this.#scroll());
    log.addEventListener("scroll", () => {
      this.#staysAtEnd = this.#isAtEnd();
      if (this.#staysAtEnd) newest.hidden = true;
    });
    // Notices come and go, and messages grow.
    const sizes = new ResizeObserver(() => this.#staysAtEnd && this.#scroll());
    for (const each of [log, this.#parts.messages]) sizes.observe(each);
    input.addEventListener("input", () => (input.value ? this.#chat.typing() : this.#chat.stopTyping()));
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      this.#chat.send(input.value);
      input.value = "";
    });
    network.addEventListener("change", this.#networkChanged);
    tokens.addEventListener("needed", this.#show);
    this.#slow = setInterval(this.#show, 500);
    this.#options = { ...this.#options, user, type };
  }

  #networkChanged = () => !this.#options.network.isCut && this.#chat.retry();

  #connect() {
    const { session, user, type, network, tokens } = this.#options;
    const connection = (this.#connection = network.connection());
    const { WebSocket, fetch } = connection;
    const chat = new LiveChat({ session, user, type, history: 50, WebSocket, fetch, token: tokens.provider() });
    this.#chat = chat;
    const on = (name, handle) => chat.on(name, (...values) => chat === this.#chat && handle(...values));
    on("state", (state) => {
      this.#offlineUntil = Date.now() + (state.retryInMs ?? 0);
      this.#show();
    });
    on("message", (message, { isOwn }) => this.#message(message, isOwn));
    on("outbox", (entry) => this.#entry(entry));
    on("typing", (typists) => {
      this.typists = [...typists.keys()];
      say(this.#parts.typing, this.typists.length ? `${list(this.typists)} ${this.typists.length > 1 ? "are" : "is"} typing` : "");
      this.#changed();
    });
    on("presence", (presence) => this.#presence(presence));
    on("read", (receipt) => this.#read(receipt));
    // In production without tokens the server shows nobody what was said before.
    on("gap", ({ reason }) => reason !== "not_offered" && this.#gap(reason));
    for (const entry of chat.outbox) this.#entry(entry);
    chat.start();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #show = () => {
    const { state, notice: place } = this.#parts;
    const now = this.#chat.state;
    say(state, stateLabel(now));
    state.dataset.is = now.state;
    this.#showNotice(place, now);
    if (now.state !== this.#shown) {
      this.#shown = now.state;
      if (now.state !== "live" && now.state !== "resuming") say(this.#parts.online, "");
      this.#changed();
    }
  };
  #shown;

  #showNotice(place, now) {
    const { state, reason } = now;
    const askToken = button("Paste a token", () => this.dispatchEvent(new Event("token")), "primary");
    if (this.needsToken) {
      const ended = state === "stopped" ? why(now, 401) : "The token in use ends soon, has ended, or was refused.";
      return notice(place, `${ended} Paste another one.`, askToken);
    }
    if (state === "offline") {
      const seconds = Math.ceil((this.#offlineUntil - Date.now()) / 1000);
      const next = seconds > 0 ? ` Next attempt in ${seconds} s.` : " Trying again.";
      const kept = this.#options.network.isCut ? "The network is cut by the button above." : why(now);
      return notice(place, `${kept}${next} What you write is kept.`, button("Try now", () => this.#chat.retry()));
    }
    if (state === "stopped" && reason !== "stopped") {
      const { status } = this.#connection;
      const buttons = status === 403 ? [askToken, button("Try again", () => this.restart())] : [button("Connect here", () => this.restart())];
      return notice(place, why(now, status), ...buttons);
    }
    notice(place, undefined);
  }

  // Messages.

  #message(message, isOwn, isOlder = false) {
    const id = String(message.message_id);
    const key = message.client_message_id && `${message.sender_id} ${message.client_message_id}`;
    let row = key && this.#byClientId.get(key);
    if (this.#ids.has(id)) return;
    this.#ids.add(id);
    if (row?.isPlaced) return;
    row ??= this.#row({ key, isOwn, text: textOf(message), sender: message });
    Object.assign(row, { id, at: Date.parse(message.timestamp) || Date.now(), isPlaced: true });
    if (isOwn && row.status !== "read") row.status = "sent";
    this.#place(row, isOlder);
    this.#draw(row);
    this.last = this.#rows.at(-1);
    this.#readMarks();
    this.#count();
    this.see();
  }

  /** A message of one's own on its way. */
  #entry(entry) {
    const key = `${this.#options.user} ${entry.client_message_id}`;
    let row = this.#byClientId.get(key);
    if (!row) {
      row = this.#row({ key, isOwn: true, text: entry.message, sender: { sender_id: this.#options.user } });
      row.at = entry.created;
      this.#place(row);
      this.last = row;
      this.#scroll();
    }
    // Of a message in the log the conversation itself knows who has read it.
    if (!row.isPlaced && entry.status !== "read") row.status = entry.status;
    row.reason = entry.reason;
    row.entry = entry;
    if (entry.message_id) row.id ??= entry.message_id;
    this.#draw(row);
    this.#changed();
  }

  #row({ key, isOwn, text, sender }) {
    const row = { isOwn, text, sender, isPlaced: false, status: isOwn ? "sending" : undefined };
    row.node = element("li", { class: `message ${isOwn ? "own" : "other"}` });
    if (key) this.#byClientId.set(key, row);
    return row;
  }

  /** In the log's order; what is not in the log yet comes last. What was loaded later goes where its time is. */
  #place(row, isOlder = false) {
    const rows = this.#rows.filter((other) => other !== row);
    let at = rows.length;
    if (row.isPlaced) {
      while (at > 0 && !rows[at - 1].isPlaced) at--;
      while (isOlder && at > 0 && rows[at - 1].at > row.at) at--;
    }
    rows.splice(at, 0, row);
    this.#rows = rows;
    const { messages, newest } = this.#parts;
    const next = rows[at + 1]?.node ?? null;
    if (row.node.parentNode !== messages || row.node.nextElementSibling !== next) messages.insertBefore(row.node, next);
    if (!this.#staysAtEnd && !row.isOwn) newest.hidden = false;
  }

  /** What has been drawn stays: the log is a live region, and what is added to it is read out. */
  #draw(row) {
    const { node, sender, isOwn, text, status, reason, at } = row;
    if (!node.hasChildNodes()) {
      const who = isOwn ? "You" : (sender.sender_id ?? sender.sender_type ?? "system");
      const kind = !isOwn && sender.sender_type && sender.sender_type !== who ? ` · ${sender.sender_type}` : "";
      const foot = element("p", { class: "foot" }, element("time"));
      if (isOwn) foot.append(" · ", element("span"));
      const body = element("p", { class: "text", dir: "auto" }, text);
      node.append(element("p", { class: "sender" }, who + kind), body, foot);
    }
    const when = node.querySelector("time");
    when.dateTime = new Date(at).toISOString();
    say(when, time(at));
    if (!isOwn || node.dataset.status === status) return;
    node.dataset.status = status;
    const words = { sending: "sending", sent: "sent", read: "read", failed: `not sent: ${failure(reason)}` }[status];
    const shown = node.querySelector("span");
    shown.className = `status ${status}`;
    say(shown, words);
    node.querySelector(".again")?.remove();
    if (status !== "failed") return;
    const buttons = [button("Send again", () => this.#again(row)), button("Discard", () => this.#discard(row))];
    node.append(element("p", { class: "again" }, ...buttons));
    announce(words);
  }

  #again(row) {
    this.#discard(row);
    this.#chat.send(row.text);
    this.focus();
  }

  #discard(row) {
    if (row.entry) this.#chat.discard(row.entry.client_message_id);
    this.#rows = this.#rows.filter((other) => other !== row);
    row.node.remove();
  }

  #isAtEnd() {
    const { log } = this.#parts;
    return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  }

  #scroll() {
    const { log, newest } = this.#parts;
    this.#staysAtEnd = true;
    log.scrollTop = log.scrollHeight;
    newest.hidden = true;
  }

  // Who is here, and who has read what.

  #presence({ users, total_customer, total_agent }) {
    const names = Object.values(users ?? {}).map(({ user_id, user_type }) => `${user_id} (${user_type})`);
    const many = `${total_customer} customers, ${total_agent} agents`;
    say(this.#parts.online, names.length ? `Online: ${list(names)}` : total_customer || total_agent ? `Online: ${many}` : "Nobody is online");
  }

  #read({ user_id, up_to }) {
    if (user_id === this.#options.user) {
      this.#newestRead ??= up_to;
      this.#count();
    } else {
      this.#readMarks();
    }
  }

  #indexOf(id) {
    return this.#rows.findLastIndex((row) => row.id === id);
  }

  #readMarks() {
    let upTo = -1;
    for (const [user, id] of this.#chat.reads) {
      if (user !== this.#options.user) upTo = Math.max(upTo, this.#indexOf(id));
    }
    for (const row of this.#rows.slice(0, upTo + 1)) {
      if (!row.isOwn || !row.isPlaced || row.status === "read") continue;
      row.status = "read";
      this.#draw(row);
    }
  }

  #count() {
    const from = this.#indexOf(this.#newestRead) + 1;
    this.unread = this.#rows.slice(from).filter(({ isOwn, isPlaced }) => isPlaced && !isOwn).length;
    this.#changed();
  }

  // What can't be replayed.

  async #gap(reason) {
    const line = element("p", {});
    const row = element("li", { class: "gap" }, line);
    this.#parts.messages.append(row);
    this.#scroll();
    const load = async () => {
      again.remove();
      const { isLoaded, result } = await this.#load();
      say(line, `What was missed can’t be replayed: ${gap(reason)}. ${result}`);
      if (!isLoaded) row.append(again);
    };
    const again = button("Load the history", load);
    say(line, `What was missed can’t be replayed: ${gap(reason)}. Loading the history.`);
    await load();
  }

  /** All that the server still has, merged by id. */
  async #load() {
    const { session, user, tokens, network } = this.#options;
    const headers = tokens.value ? { Authorization: `Bearer ${tokens.value}` } : {};
    const before = this.#ids.size;
    const address = `/api/session/${encodeURIComponent(session)}/messages`;
    try {
      const response = await network.fetch(`${address}?limit=1000`, { headers });
      const body = await response.json();
      if (!response.ok) return { result: `Messages may be missing here. The server answers ${response.status}: ${body.error}.` };
      for (const frame of body.data.messages) {
        const isMessage = frame?.type === "new_message" && frame.data?.message_id !== undefined;
        if (isMessage) this.#message(frame.data, frame.data.sender_id === user, true);
      }
      const added = this.#ids.size - before;
      const found = added === 0 ? "nothing more" : added === 1 ? "one message" : `${added} messages`;
      return { isLoaded: true, result: `The history is loaded: ${found} found.` };
    } catch {
      return { result: "Messages may be missing here, and the server does not answer at the moment." };
    }
  }
}
