/** What a client is doing, and why. */
export interface State {
  /**
   * - `connecting`: a connection is being made
   * - `resuming`: connected; what was missed is coming
   * - `live`: connected
   * - `offline`: not connected; the next attempt is in `retryInMs`
   * - `stopped`: not connected, and it stays so until `start()`
   */
  state: "connecting" | "resuming" | "live" | "offline" | "stopped";
  /**
   * For `offline`: `not_started`, `network`, `origin` (the server answers, but not to a page of this origin), `timeout`,
   * `silence`, `hidden`, `token`, `handshake`, `closed_<code>`, `http_<status>`. For `stopped`: `stopped`,
   * `replaced`, `forbidden`, `unauthenticated`, `policy`, `too_big`, `protocol_error`, `bad_address`, `bad_token`,
   * `no_websocket`, `http_<4xx>`.
   */
  reason?: string;
  /** The server's words about a refused handshake. */
  detail?: string;
  retryInMs?: number;
  error?: unknown;
}

/** A message of the session, as the server sent it. */
export interface Message {
  message_id: string | number;
  session_id: string;
  sender_id: string | null;
  sender_type: "customer" | "agent" | "admin" | "ai" | "system" | string;
  message: string;
  message_type: string | null;
  attachments: unknown[] | null;
  /** RFC 3339. */
  timestamp: string;
  client_message_id?: string;
  [other: string]: unknown;
}

/** A message of one's own on its way. */
export interface OutboxEntry {
  client_message_id: string;
  message: string;
  message_type?: string;
  attachments?: unknown[];
  /** Milliseconds since 1970. */
  created: number;
  /** When it was first sent, in milliseconds since 1970. */
  tried?: number;
  status: "sending" | "sent" | "read" | "failed";
  /** For `failed`: `empty`, `too_big`, `invalid` (no JSON), `expired` (it may still become `sent`), or an error code of the server. */
  reason?: string;
  message_id?: string;
  timestamp?: string;
}

export interface User {
  user_id: string;
  user_type: "customer" | "agent" | "admin";
  joined_at: string;
}

export interface Presence {
  users: Record<string, User>;
  /** There are more than 100 users, and `users` is empty. */
  users_truncated?: boolean;
  /** Other services' updates may lack these four. */
  customer_connected?: boolean;
  agent_connected?: boolean;
  total_customer?: number;
  total_agent?: number;
  events: { event_type: "user_connected" | "user_disconnected"; event_user_id: string }[];
}

export interface Frame {
  type: string;
  success: boolean;
  data?: any;
  error?: string;
  request_id?: string | number;
}

export interface Events {
  state: (state: State) => void;
  /** Each message once, in the log's order. */
  message: (message: Message, about: { isOwn: boolean }) => void;
  /** The status of a message of one's own has changed. */
  outbox: (entry: OutboxEntry) => void;
  /** Who else is typing: user id to user type. */
  typing: (typists: Map<string, string>) => void;
  presence: (presence: Presence) => void;
  read: (receipt: { user_id: string; up_to: string }) => void;
  /**
   * What was missed can't be replayed: load the history anew. `not_offered`: in production without tokens the server
   * shows nobody what was said before.
   */
  gap: (gap: { reason: string }) => void;
  /** The token provider has failed, or the server refuses its token. */
  token: (problem: { error: unknown }) => void;
  /** Every frame, as it came. */
  frame: (frame: Frame) => void;
}

export interface Options {
  /** `https://chat.example.com`; the page's own origin if absent. */
  url?: string;
  session: string;
  user: string;
  type: "customer" | "agent" | "admin";
  /** A token, or a function that gets one; it is called again before a token ends. */
  token?: string | (() => string | Promise<string>);
  /** How many of the last messages are shown at first: 0 to 100, 50 by default. Not in production without tokens. */
  history?: number;
  /** Where the outbox is kept: `sessionStorage` by default, `null` for nowhere. */
  storage?: Pick<Storage, "getItem" | "setItem" | "removeItem"> | null;
  /** How often a silent connection is tested, in milliseconds: 20,000 by default. */
  pingMs?: number;
  /** How long an answer may take, in milliseconds: 10,000 by default. */
  timeoutMs?: number;
  /** The server's MAX_MESSAGE_BYTES: 65,536 by default. */
  maxMessageBytes?: number;
  /** The server's DEDUP_WINDOW, in milliseconds: 300,000 by default. */
  dedupWindowMs?: number;
  WebSocket?: typeof WebSocket;
  fetch?: typeof fetch;
}

export class LiveChat {
  constructor(options: Options);
  readonly state: State;
  /** Messages that are not confirmed yet. */
  readonly outbox: OutboxEntry[];
  readonly users: Record<string, User>;
  /** How far each user has read: user id to message id. */
  readonly reads: ReadonlyMap<string, string>;
  /** Returns a function that removes the listener. Types of other services' frames are events, too. */
  on<E extends keyof Events>(name: E, listener: Events[E]): () => void;
  on(name: string, listener: (data: any, frame: Frame) => void): () => void;
  start(): this;
  /** Closes the connection for good. The outbox is kept. */
  stop(): this;
  /** Connects now instead of after the pause. */
  retry(): this;
  /** Nothing is thrown: what can't be sent has the status `failed`. */
  send(message: string, extra?: { message_type?: string; attachments?: unknown[] }): OutboxEntry;
  /** Gives up a message that is not confirmed. It may have been sent all the same. */
  discard(clientMessageId: string): void;
  /** Call it on each key. */
  typing(): void;
  stopTyping(): void;
  /** Everything up to this message was read. Call it for each message that is seen: it sends at most one receipt a second. */
  read(messageId: string | number): void;
}

/** The reason for which a close code ends the client; undefined: it reconnects. */
export function finalReason(code: number): string | undefined;
/** `Retry-After` in milliseconds. */
export function retryAfter(header: string | null, now?: number): number;
export class Backoff {
  constructor(random?: () => number);
  reset(): void;
  next(code?: number, retryAfterMs?: number): number;
}
