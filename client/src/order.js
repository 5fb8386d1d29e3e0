// Which messages were shown, and in which order: each once, however often it arrives.

const MOST = 5_000;

export class Order {
  #places = new Map();
  #next = 0;

  /** False if the message was here before. */
  add(id) {
    if (this.#places.has(id)) return false;
    this.#places.set(id, this.#next++);
    if (this.#places.size > MOST) this.#places.delete(this.#places.keys().next().value);
    return true;
  }

  /** Whether a message comes no later than another one. */
  isUpTo(id, upTo) {
    if (id === upTo) return true;
    const [a, b] = [this.#places.get(id), this.#places.get(upTo)];
    if (a !== undefined && b !== undefined) return a <= b;
    // UUIDv7 (RFC 9562, section 5.7) sort by time.
    return isV7(id) && isV7(upTo) && id.toLowerCase() <= upTo.toLowerCase();
  }
}

const isV7 = (id) => /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/i.test(id);
