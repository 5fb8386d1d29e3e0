// What happens to the page, and with it to its connections.

/** Calls `awake`, `lost` and `hidden`; returns a function that ends it. */
export function watchPage({ page = globalThis.window, document = globalThis.document }, { awake, lost, hidden }) {
  const removers = [];
  const listen = (target, name, listener) => {
    target?.addEventListener?.(name, listener);
    removers.push(() => target?.removeEventListener?.(name, listener));
  };
  listen(page, "online", awake);
  // Without a network there is nothing to wait for; with a wrong report the next attempt comes all the same.
  listen(page, "offline", lost);
  // A page with a connection can't be kept for "back".
  listen(page, "pagehide", hidden);
  listen(page, "pageshow", (event) => event.persisted && awake());
  listen(document, "visibilitychange", () => document.visibilityState === "visible" && awake());
  listen(document, "resume", awake);
  return () => removers.splice(0).forEach((remove) => remove());
}

/** `sessionStorage`, which may be forbidden. */
export function sessionStorageOrNone() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}
