// The tokens of the two sides: pasted by who tries the console, and kept in the page's memory only.

import { find } from "./ui.js";

export class Tokens extends EventTarget {
  #waiting = new Set();
  value = "";

  get isNeeded() {
    return this.#waiting.size > 0;
  }

  /** A provider for one chat; none without a token, as the server may want none. */
  provider() {
    if (!this.value) return undefined;
    let given;
    // Asked again, the one before has ended, ends soon, or was refused.
    return async () => {
      const before = given;
      while (this.value === before) {
        await new Promise((done) => {
          this.#waiting.add(done);
          this.dispatchEvent(new Event("needed"));
        });
      }
      return (given = this.value);
    };
  }

  /** Takes another token. Returns whether a chat was waiting for it. */
  use(token) {
    this.value = token;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const done of waiting) done();
    this.dispatchEvent(new Event("change"));
    return waiting.length > 0;
  }
}

/** When a token ends, in words. */
function ends(token) {
  try {
    const { exp } = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    const at = new Date(exp * 1000);
    return at < new Date() ? `It ended at ${at.toLocaleTimeString()}.` : `It ends at ${at.toLocaleTimeString()}.`;
  } catch {
    return token ? "This does not look like a token." : "None.";
  }
}

/** The dialog; returns a function that opens it for one of the sides. */
export function tokenDialog(sides, changed) {
  const dialog = find(document, "tokens");
  const fields = Object.entries(sides).map(([side, { tokens, needs }]) => ({
    side,
    tokens,
    needs,
    input: dialog.querySelector(`#token-${side}`),
    hint: dialog.querySelector(`#token-${side}-hint`),
  }));
  const show = () => {
    for (const { input, hint, needs } of fields) hint.textContent = `${needs()} ${ends(input.value.trim())}`;
  };
  dialog.addEventListener("input", show);
  find(dialog, "close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "save") return;
    for (const { side, tokens, input } of fields) {
      const token = input.value.trim();
      if (token !== tokens.value) changed(side, tokens.use(token));
    }
  });
  return (side) => {
    for (const { input, tokens } of fields) input.value = tokens.value;
    show();
    dialog.returnValue = "";
    dialog.showModal();
    fields.find((field) => field.side === side)?.input.focus();
  };
}
