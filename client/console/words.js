// What states, close codes and refusals mean, in words for who looks at the screen.

const OFFLINE = {
  not_started: "not started yet",
  network: "the network is gone, or the server does not answer",
  timeout: "the server did not answer in time",
  silence: "the connection was silent: it is taken for dead",
  hidden: "the page was hidden",
  token: "there is no token",
  handshake:
    "the WebSocket handshake fails although the server answers: a proxy may not pass it on, or ALLOWED_ORIGINS lacks this page",
  origin: "the server answers, but not to a page from here: ALLOWED_ORIGINS may lack it",
  closed_1000: "the connection was closed",
  closed_1001: "the server is shutting down (1001)",
  closed_1011: "the server had an internal error (1011)",
  closed_1013: "the server is overloaded (1013)",
  closed_4001: "the server heard nothing from this page in time (4001)",
  closed_4008: "this page read too slowly (4008)",
};

const STOPPED = {
  stopped: "Stopped.",
  replaced: "The chat was opened elsewhere, and this connection was replaced (4009).",
  forbidden: "The server does not let this user in any more (4403).",
  unauthenticated: "The token has ended, or is not valid any more (4401).",
  policy: "The server closed the connection: too many messages at once (1008).",
  too_big: "The server closed the connection: a message was too big (1009).",
  protocol_error: "The server closed the connection: this page broke the protocol.",
  bad_token: "The token has characters that no token has.",
  bad_address: "The address is not one that a browser can connect to.",
};

const STATUS = {
  401: "The server wants a token (401).",
  403: "The server refuses this (403).",
  404: "The server does not know this address (404).",
  429: "The server has too many connections from here (429).",
  503: "The server takes no more connections at the moment (503).",
};

const FAILED = {
  empty: "it is empty",
  too_big: "it is too long",
  expired: "not confirmed for four minutes: it may have arrived all the same",
  record_too_large: "it is too long for the server",
  invalid_field: "the server does not accept it",
  not_allowed: "it is not allowed here",
  internal_error: "the server had an internal error",
};

const GAP = {
  unknown_message: "the server does not know the last message shown here; it may have started again since",
  too_old: "the last message shown here is older than what the server keeps at hand",
  too_many: "too many messages were missed to be sent at once",
  unavailable: "the log cannot be read at the moment",
  busy: "the server is busy with others who come back",
  invalid: "the server does not accept this page’s position",
};

/** Of a state that is not live: why, as a sentence. `status` is that of the refusal, if there was one. */
export function why({ state, reason, detail }, status) {
  if (state === "offline") return `No connection: ${OFFLINE[reason] ?? detail ?? codeOr(reason)}.`;
  if (detail || !STOPPED[reason]) return (STATUS[status] ?? "The server refuses the connection.") + (detail ? ` It says: ${detail}.` : "");
  return STOPPED[reason];
}

const codeOr = (reason = "") => (/^closed_/.test(reason) ? `closed with code ${reason.slice(7)}` : reason || "unknown");

export const stateLabel = ({ state }) =>
  ({ live: "connected", resuming: "catching up", connecting: "connecting", offline: "offline", stopped: "stopped" })[state];

export const failure = (reason) => FAILED[reason] ?? String(reason).replaceAll("_", " ");
export const gap = (reason) => GAP[reason] ?? reason;

/** 75 s: "1:15"; from an hour on "1:02:03". */
export function clock(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export const time = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

/** "a", "a and b", "a, b and c". */
export function list(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
