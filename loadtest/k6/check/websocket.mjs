// A WebSocket client with the face of k6/websockets, on a plain socket.
import { randomBytes } from 'node:crypto';
import net from 'node:net';

import { frame, Frames } from './frames.mjs';

const TEXT = 1;
const CLOSE = 8;
const PING = 9;
const PONG = 10;

/** How long the other side may take to answer a close. */
const CLOSE_TIMEOUT = 5000;

export class WebSocket {
  /** `vu` has `pending`, what holds its iteration open, and `call` for the script's handlers. */
  constructor(url, vu) {
    Object.assign(this, { url, vu, readyState: 0 });
    const { hostname, port, pathname, protocol } = new URL(url);
    if (protocol !== 'ws:') throw new Error(`${url}: only ws:// is spoken here`);
    vu.pending += 1;
    this.socket = net.connect({ host: hostname, port: Number(port), noDelay: true });
    this.socket.write(
      `GET ${pathname} HTTP/1.1\r\nHost: ${hostname}:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n`
      + `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\n\r\n`,
    );
    const frames = new Frames((head) => this.opened(head.toString()), (one) => this.take(one));
    this.socket.on('data', (chunk) => {
      if (this.readyState !== 3) frames.push(chunk);
    });
    this.socket.on('error', (error) => this.failed(error.message));
    this.socket.on('close', () => {
      if (this.readyState === 0) this.failed('closed before the handshake was answered');
      else this.ended();
    });
  }

  opened(head) {
    if (!head.startsWith('HTTP/1.1 101 ')) {
      this.failed(`bad handshake: ${head.split('\r\n')[0]}`);
      return;
    }
    this.readyState = 1;
    this.tell('onopen');
  }

  take({ opcode, payload }) {
    if (opcode === TEXT && this.readyState !== 3) this.tell('onmessage', { type: 'message', data: payload.toString() });
    if (opcode === PING) this.write(PONG, payload);
    if (opcode === CLOSE) {
      if (this.readyState === 1) this.write(CLOSE, payload);
      this.socket.end();
      this.ended();
    }
  }

  send(text) {
    if (this.readyState !== 1) throw new Error('InvalidStateError: the socket is not open');
    this.write(TEXT, Buffer.from(text));
  }

  close(code = 1000) {
    if (this.readyState > 1) return;
    if (this.readyState === 0) {
      this.socket.destroy();
      return;
    }
    this.readyState = 2;
    this.write(CLOSE, Buffer.from([code >> 8, code & 0xff]));
    this.timer = setTimeout(() => this.socket.destroy(), CLOSE_TIMEOUT);
  }

  write(opcode, payload) {
    this.socket.write(frame(opcode, payload, randomBytes(4)));
  }

  /** No handshake, or a socket that broke: an error, and no close behind it where it was never open. */
  failed(error) {
    const wasOpen = this.readyState === 1 || this.readyState === 2;
    if (this.readyState === 3) return;
    this.tell('onerror', { type: 'error', error });
    if (wasOpen) {
      this.ended();
    } else {
      this.readyState = 3;
      this.socket.destroy();
      this.vu.pending -= 1;
    }
  }

  ended() {
    clearTimeout(this.timer);
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.tell('onclose', { type: 'close' });
    this.vu.pending -= 1;
  }

  tell(name, event) {
    if (this[name]) this.vu.call(this[name], event);
  }
}
