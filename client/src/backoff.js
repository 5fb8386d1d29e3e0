// What to do after a connection has ended, and how long to wait before the next one.

/** Never again, and why: the application has to act. */
const FINAL = {
  1002: "protocol_error",
  1003: "protocol_error",
  1007: "protocol_error",
  1008: "policy",
  1009: "too_big",
  4009: "replaced",
  4403: "forbidden",
};

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
/** A node that shuts down closes many connections: they come back spread over this time. */
const DRAIN_MS = 1_000;

/** The reason for which a close code ends the client; undefined: it reconnects. */
export const finalReason = (code) => FINAL[code];

/** Pauses between attempts: each is drawn from zero to a bound that doubles ("full jitter"). */
export class Backoff {
  #failures = 0;
  #random;

  constructor(random = Math.random) {
    this.#random = random;
  }

  /** A connection was established. */
  reset() {
    this.#failures = 0;
  }

  /** The pause in milliseconds after this close code; at least what `Retry-After` asks for. */
  next(code, retryAfterMs = 0) {
    const bound =
      code === 1001 && this.#failures === 0
        ? DRAIN_MS
        : Math.min(FIRST_PAUSE_MS * 2 ** this.#failures, LONGEST_PAUSE_MS);
    this.#failures = Math.min(this.#failures + 1, 10);
    return retryAfterMs + this.#random() * bound;
  }
}

/** `Retry-After` (RFC 9110, section 10.2.3): seconds or a date, in milliseconds from `now`. */
export function retryAfter(header, now = Date.now()) {
  const seconds = Number(header);
  const wait = header && Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - now;
  return Math.min(Math.max(wait || 0, 0), 300_000);
}
