// Timers by name: a second one of a name replaces the first.

export class Timers {
  #timers = new Map();

  after(name, ms, run) {
    this.cancel(name);
    const timer = setTimeout(() => {
      this.#timers.delete(name);
      run();
    }, ms);
    this.#timers.set(name, timer);
  }

  cancel(...names) {
    for (const name of names) {
      clearTimeout(this.#timers.get(name));
      this.#timers.delete(name);
    }
  }

  cancelAll(...except) {
    this.cancel(...[...this.#timers.keys()].filter((name) => !except.includes(name)));
  }

  has(name) {
    return this.#timers.has(name);
  }
}
