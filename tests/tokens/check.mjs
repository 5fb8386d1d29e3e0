// Lets one of examples/tokens issue tokens, and presents them to a server with the same JWT_… settings:
//
//   node check.mjs http://127.0.0.1:8082 COMMAND...
//
// COMMAND is the program, which gets USER ROLE SECONDS [SESSION...] and prints a token. Exit status 1 where the server
// answers otherwise than expected.
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import http from 'node:http';

const [url, ...command] = process.argv.slice(2);
/** How long the server may take for an answer. */
const PATIENCE = 10_000;
/** JWT_LEEWAY is 30 s. */
const EXPIRED = -60;
const UUID = '7F3C2A10-5B1D-4E8A-9C64-0123456789AB';

let failed = 0;
let passed = 0;

function expect(what, seen, wanted) {
  if (JSON.stringify(seen) === JSON.stringify(wanted)) {
    passed += 1;
    return;
  }
  failed += 1;
  console.error(`${what}: ${JSON.stringify(seen)}, not ${JSON.stringify(wanted)}`);
}

/** A token, with these changes to the program's environment. */
function issue(user, role, seconds, sessions, env = {}) {
  const [program, ...args] = [...command, user, role, String(seconds), ...sessions];
  const options = { env: { ...process.env, ...env }, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] };
  return execFileSync(program, args, options).trim();
}

function request(path, headers, onUpgrade) {
  return new Promise((resolve, reject) => {
    const asked = http.get(url + path, { headers, agent: false, timeout: PATIENCE });
    asked.on('timeout', () => asked.destroy(new Error(`no answer to ${path}`)));
    asked.on('error', reject);
    asked.on('response', (response) => {
      response.resume();
      resolve({ status: response.statusCode, challenge: response.headers['www-authenticate'] });
    });
    asked.on('upgrade', (response, socket, head) => onUpgrade(response, socket, head, resolve));
  });
}

/** The text of the first frame, or undefined where more bytes are needed. */
function firstFrame(bytes) {
  if (bytes.length < 4) return undefined;
  const short = bytes[1] & 0x7f;
  const [start, length] = short < 126 ? [2, short] : [4, bytes.readUInt16BE(2)];
  return bytes.length < start + length ? undefined : JSON.parse(bytes.toString('utf8', start, start + length));
}

/**
 * The handshake that a browser makes for `new WebSocket(url, ["livechat.v1", "livechat.bearer." + token])`. By hand,
 * since that one shows no status, and Node has it only since version 22.
 */
function connect(session, user, role, token) {
  const headers = {
    Connection: 'Upgrade',
    Upgrade: 'websocket',
    'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Key': randomBytes(16).toString('base64'),
    'Sec-WebSocket-Protocol': `livechat.v1, livechat.bearer.${token}`,
  };
  return request(`/ws/${session}/${encodeURIComponent(user)}/${role}`, headers, (response, socket, head, resolve) => {
    const protocol = response.headers['sec-websocket-protocol'];
    let bytes = head;
    const read = (more) => {
      bytes = Buffer.concat([bytes, more]);
      const frame = firstFrame(bytes);
      if (frame === undefined) return;
      socket.destroy();
      resolve({ protocol, type: frame.type, user: frame.data.user_id, role: frame.data.user_type });
    };
    socket.on('data', read);
    socket.on('close', () => resolve({ protocol, type: 'closed before its greeting' }));
    read(Buffer.alloc(0));
  });
}

const get = (path, token) => request(path, { Authorization: `Bearer ${token}` });
const greeting = (user, role) => ({ protocol: 'livechat.v1', type: 'connection_established', user, role });
const FORBIDDEN = { status: 403 };
const UNAUTHORIZED = { status: 401, challenge: 'Bearer' };

const customer = issue('alice', 'customer', 300, ['demo', UUID]);
expect('a customer', await connect('demo', 'alice', 'customer', customer), greeting('alice', 'customer'));
expect('her other session', await connect(UUID.toLowerCase(), 'alice', 'customer', customer), greeting('alice', 'customer'));
expect('another session', await connect('other', 'alice', 'customer', customer), FORBIDDEN);
expect('another user', await connect('demo', 'bob', 'customer', customer), FORBIDDEN);
expect('another role', await connect('demo', 'alice', 'agent', customer), FORBIDDEN);
expect('a plain GET', (await get('/ws/demo/alice/customer', customer)).status, 426);
expect('the status route', (await get('/api/session/demo/connection-status', customer)).status, 200);
expect('that of another session', await get('/api/session/other/connection-status', customer), FORBIDDEN);

const cut = `${customer.slice(0, -4)}AAAA`;
expect('a wrong signature', await connect('demo', 'alice', 'customer', cut), UNAUTHORIZED);
const expired = issue('alice', 'customer', EXPIRED, ['demo']);
expect('an expired one', await connect('demo', 'alice', 'customer', expired), UNAUTHORIZED);
const nowhere = issue('alice', 'customer', 300, []);
expect('a customer without sessions', await connect('demo', 'alice', 'customer', nowhere), FORBIDDEN);

const agent = issue('bob', 'agent', 300, ['*']);
expect('an agent of all sessions', await connect('any', 'bob', 'agent', agent), greeting('bob', 'agent'));
expect('not as a customer', await connect('any', 'bob', 'customer', agent), FORBIDDEN);
const none = issue('bob', 'agent', 300, []);
expect('an agent without sessions', await connect('any', 'bob', 'agent', none), FORBIDDEN);
const limited = issue('bob', 'agent', 300, ['demo']);
expect('an agent with a list', await connect('demo', 'bob', 'agent', limited), greeting('bob', 'agent'));
expect('outside of it', await connect('any', 'bob', 'agent', limited), FORBIDDEN);

const strange = 'auth0|José Müller';
const theirs = issue(strange, 'customer', 300, ['demo']);
expect('a user id of an identity provider', await connect('demo', strange, 'customer', theirs), greeting(strange, 'customer'));

// No user id can leave its claim: the server would refuse these, but another reader of the token might not.
const hostile = 'x","role":"admin\\';
const claims = JSON.parse(Buffer.from(issue(hostile, 'customer', 300, ['"]']).split('.')[1], 'base64url'));
const { sub, role, sessions, iat, exp } = claims;
expect('the claims', [sub, role, sessions, exp - iat], [hostile, 'customer', ['"]'], 300]);
expect('iat', Math.abs(iat - Date.now() / 1000) < 30, true);

for (const name of ['JWT_ISSUER', 'JWT_AUDIENCE']) {
  if (!process.env[name]) continue;
  const without = issue('alice', 'customer', 300, ['demo'], { [name]: '' });
  expect(`without ${name}`, await connect('demo', 'alice', 'customer', without), UNAUTHORIZED);
}

for (const secret of ['', 'shorter than 32 bytes']) {
  let printed = 'nothing';
  try {
    printed = issue('alice', 'customer', 300, ['demo'], { JWT_SECRET: secret, JWT_SECRET_FILE: '' });
  } catch (error) {
    if (!error.stderr?.includes('32 bytes')) printed = `${error.message}`;
  }
  expect(`with the secret "${secret}"`, printed, 'nothing');
}

console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
