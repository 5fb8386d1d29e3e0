import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';

/** JWT_SECRET, or what is in the file JWT_SECRET_FILE, without a line break at its end. */
function secret() {
  const { JWT_SECRET = '', JWT_SECRET_FILE } = process.env;
  const text = JWT_SECRET_FILE ? readFileSync(JWT_SECRET_FILE, 'utf8') : JWT_SECRET;
  const key = Buffer.from(text.replace(/\r?\n$/, ''));
  if (key.length < 32) throw new Error('JWT_SECRET needs at least 32 bytes');
  return key;
}

/**
 * For a user who is signed in to the application. Sessions are the user's own; ['*'] is for agents
 * and admins who may enter all of them.
 */
export function issueToken(user, role, sessions, seconds) {
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    sub: user,
    role, // customer, agent or admin
    // null would mean all of an agent's.
    sessions: sessions?.length === 1 && sessions[0] === '*' ? '*' : (sessions ?? []),
    iss: process.env.JWT_ISSUER || undefined, // then left out
    aud: process.env.JWT_AUDIENCE || undefined,
    iat: now,
    exp: now + seconds,
  };
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const signed = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`;
  return `${signed}.${createHmac('sha256', secret()).update(signed).digest('base64url')}`;
}

// The command line: node token.mjs USER ROLE SECONDS [SESSION...]
if (process.argv[1]?.endsWith('token.mjs')) {
  const [user, role, seconds, ...sessions] = process.argv.slice(2);
  if (seconds === undefined) throw new Error('USER ROLE SECONDS [SESSION...]');
  console.log(issueToken(user, role, sessions, Number(seconds)));
}
