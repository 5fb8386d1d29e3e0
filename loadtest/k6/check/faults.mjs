// A proxy before the server that spoils what comes from it, so that each threshold is seen to fail.
//
//   node faults.mjs PORT SERVER_PORT FAULT [TYPE]
//
// Every third frame of TYPE is spoilt, or every third connection; what concerns no frame needs no TYPE.
import net from 'node:net';

import { frame, Frames } from './frames.mjs';

const EVERY = 3;
/** In ms: above the limits that check.sh sets for what is late, below its PATIENCE. */
const DELAY = 700;

const [port, serverPort, fault, type] = process.argv.slice(2);
const FAULTS = {
  none: () => {},
  /** It never comes. */
  lose: (to) => to.drop(),
  /** It comes twice. */
  double: (to, bytes) => to.write(bytes),
  /** It comes after the next two of its type: of two people who talk in turn, each one's own order is broken. */
  swap: (to, bytes) => to.keep(bytes, 2),
  /** The first one comes after the next, on the first connection only: nobody's own order is broken. */
  trade: (to, bytes) => {
    if (to.isFirst && to.matched === 0) to.keep(bytes, 1);
  },
  /** It, and all behind it, comes late. */
  late: (to) => to.delay(DELAY),
  /** It comes with the client's id of another message. */
  alter: (to, bytes, text) => to.replace(text.replace(/("client_message_id":"[^"]*)"/, '$19"')),
  /** An error comes before it. */
  error: (to) => to.write(frame(1, Buffer.from('{"type":"error","success":false,"data":{},"error":"spoilt"}'))),
  /** The connection is lost instead. */
  cut: (to) => to.cut(),
  /** It comes to the typist, too. */
  echo: (to, bytes, text) => {
    const { session_id: session, user_id: user } = JSON.parse(text).data;
    connections.forEach((other) => {
      if (other.path.startsWith(`/ws/${session}/${user}/`)) other.write(bytes);
    });
  },
  /** The handshake is refused. */
  refuse: () => {},
};
if (!(fault in FAULTS)) throw new Error(`faults are: ${Object.keys(FAULTS).join(', ')}`);

const connections = new Set();
let accepted = 0;

/** The way to one client: what was written leaves in that order, when it is due. */
class To {
  constructor(client, server, isFirst) {
    Object.assign(this, { client, server, isFirst, path: '', matched: 0, due: 0, queue: [], kept: null });
  }

  write(bytes) {
    this.queue.push({ bytes, due: Math.max(this.due, Date.now()) });
    this.flush();
  }

  flush() {
    while (this.queue.length > 0 && this.queue[0].due <= Date.now()) this.client.write(this.queue.shift().bytes);
    if (this.queue.length > 0) setTimeout(() => this.flush(), this.queue[0].due - Date.now());
    else if (this.isEnding) this.client.end();
  }

  end() {
    this.isEnding = true;
    this.flush();
  }

  delay(ms) { this.due = Math.max(this.due, Date.now() + ms); }

  drop() { this.isDropped = true; }

  keep(bytes, others) {
    this.kept = { bytes, others };
    this.isDropped = true;
  }

  replace(text) {
    this.write(frame(1, Buffer.from(text)));
    this.isDropped = true;
  }

  cut() {
    this.client.destroy();
    this.server.destroy();
  }

  pass({ opcode, payload, bytes }) {
    const text = payload.toString();
    this.isDropped = false;
    const isMatch = opcode === 1 && text.startsWith(`{"type":"${type}"`);
    if (isMatch) {
      // The first is one of them: of greetings a connection has no second.
      if (this.matched % EVERY === 0) FAULTS[fault](this, bytes, text);
      this.matched += 1;
    }
    if (this.isDropped) return;
    this.write(bytes);
    if (isMatch && this.kept) {
      this.kept.others -= 1;
      if (this.kept.others === 0) this.write(this.kept.bytes);
    }
  }
}

net.createServer((client) => {
  accepted += 1;
  client.on('error', () => {});
  if (fault === 'refuse' && accepted % EVERY === 0) {
    client.end('HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n');
    return;
  }
  const server = net.connect(Number(serverPort), '127.0.0.1');
  const to = new To(client, server, accepted === 1);
  connections.add(to);
  client.once('data', (head) => {
    to.path = head.toString().split(' ')[1];
    server.write(head);
    client.pipe(server);
  });
  const frames = new Frames((head) => to.write(head), (one) => to.pass(one));
  server.on('data', (chunk) => frames.push(chunk));
  server.on('error', () => client.destroy());
  server.on('close', () => {
    connections.delete(to);
    to.end();
  });
  client.on('close', () => server.destroy());
}).listen(Number(port), '127.0.0.1', () => console.log('listening'));
