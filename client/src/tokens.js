// The token of a chat, and when to ask for another one.

/** A token that was asked for so lately is not asked for again at once, however soon it ends. */
const FRESH_MS = 5_000;
const SHORTEST_WAIT_MS = 500;
/** What can be an element of a header's list (RFC 9110, section 5.6.2): nothing else can be a subprotocol. */
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

export class Tokens {
  #source;
  #now;
  #token;
  #askedAt = -Infinity;
  /** The one in use was asked for after a refusal: another refusal is final. */
  isNew = false;

  /** `source`: none, a token, or a function that gets one. */
  constructor(source, now) {
    this.#source = source;
    this.#now = now;
  }

  get areUsed() {
    return this.#source !== undefined;
  }

  get canChange() {
    return typeof this.#source === "function";
  }

  /** The next one is asked for anew. */
  forget() {
    this.#token = undefined;
  }

  /** The one to connect with: "" without any. Throws what the source throws. */
  async get() {
    if (!this.areUsed) return "";
    if (!this.canChange) return this.#source.trim();
    if (this.#token === undefined) {
      this.#askedAt = this.#now();
      this.#token = await this.#source();
    }
    if (typeof this.#token !== "string" || !this.#token) throw new TypeError("the token provider returned no token");
    return (this.#token = this.#token.trim());
  }

  /** Another token than the one in use; undefined if there is none yet. Throws what the source throws. */
  async next() {
    const before = this.#token;
    this.forget();
    try {
      const token = await this.get();
      return token === before ? undefined : token;
    } catch (error) {
      this.#token = before;
      throw error;
    }
  }

  /** How long to wait before the next one is asked for, in milliseconds; at once for one that has been used for a while. */
  wait(expiresAt, hasTried) {
    if (!hasTried && this.#now() - this.#askedAt >= FRESH_MS) return 0;
    return Math.max((Date.parse(expiresAt) - this.#now()) / 2 || 0, SHORTEST_WAIT_MS);
  }
}

export const isToken = (text) => TOKEN.test(text);
