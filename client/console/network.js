// A network that can be cut by a button: connections end without a word, and new ones come to nothing.

export class Network extends EventTarget {
  #sockets = new Set();
  isCut = false;

  cut() {
    this.isCut = true;
    for (const socket of [...this.#sockets]) socket.lose();
    this.dispatchEvent(new Event("change"));
  }

  restore() {
    this.isCut = false;
    this.dispatchEvent(new Event("change"));
  }

  /** What a chat needs to use this network; `status` is that of the last refusal. */
  connection() {
    const network = this;
    const sockets = this.#sockets;
    const connection = {
      status: undefined,
      WebSocket: class {
        readyState = 0;

        constructor(address, protocols) {
          sockets.add(this);
          if (network.isCut) {
            setTimeout(() => this.lose(), 50);
            return;
          }
          const real = (this.real = new WebSocket(address, protocols));
          real.onopen = () => (this.readyState = 1);
          real.onmessage = (event) => {
            connection.status = undefined;
            this.onmessage?.(event);
          };
          real.onerror = (event) => this.onerror?.(event);
          real.onclose = (event) => this.#ended(event);
        }

        send(text) {
          this.real?.send(text);
        }

        close(code) {
          this.readyState = 3;
          this.real?.close(code);
          sockets.delete(this);
        }

        lose() {
          const { real } = this;
          if (real) real.onmessage = real.onerror = real.onclose = null;
          real?.close();
          this.#ended({ code: 1006 });
        }

        #ended(event) {
          this.readyState = 3;
          sockets.delete(this);
          this.onclose?.(event);
        }
      },
      async fetch(address, options) {
        const response = await network.fetch(address, options);
        connection.status = response.status;
        return response;
      },
    };
    return connection;
  }

  async fetch(address, options) {
    if (this.isCut) throw new TypeError("the network is cut");
    return fetch(address, options);
  }
}

/** A button that cuts a network and restores it. */
export function cutButton(node, network) {
  node.addEventListener("click", () => (network.isCut ? network.restore() : network.cut()));
  network.addEventListener("change", () => {
    node.setAttribute("aria-pressed", network.isCut);
    node.textContent = network.isCut ? "Restore network" : "Cut network";
  });
}
