// Reconnects: while one talks, others close and come back, again and again. The greeting is the first frame each time,
// what is sent after it comes, once and in order, and everyone comes back.
//
//   k6 run -e SESSIONS=2 -e CLIENTS=5 -e STAY=500ms -e AWAY=200ms -e DURATION=5s loadtest/k6/reconnect.js

import { check } from 'k6';
import { Rate } from 'k6/metrics';
import { DURATION, duration, messageThresholds, number, options as optionsWith } from './lib/env.js';
import { eventually, inSession, pause } from './lib/client.js';
import { converse, Seen, Sender } from './lib/messages.js';

/** Those of a session who come and go, beside the one who talks. */
const CLIENTS = number('CLIENTS', 5);
/** How long they stay and are away; each time is drawn from half of it to one and a half of it. */
const STAY = duration('STAY', '500ms');
const AWAY = duration('AWAY', '200ms');
const RATE = number('RATE', 10);

const returned = new Rate('chat_returned');

export const options = optionsWith(Object.assign(messageThresholds(), { chat_returned: ['rate==1'] }));

const about = (ms) => ms * (0.5 + Math.random());

export default async function reconnect() {
  await inSession('reconnect', async (session, join) => {
    const talker = new Sender(session, 'talker', 'agent');
    talker.client = join(talker.user, talker.type, (frame, now) => {
      if (frame.type === 'message_sent') talker.answered(frame, now);
    });
    if (!await talker.client.open()) return false;
    let isOver = false;

    const comeAndGo = async (user) => {
      let isWhole = true;
      let visits = 0;
      // At least twice: who never came back proves nothing.
      while (isWhole && (!isOver || visits < 2)) {
        let seen = null;
        const client = join(user, 'customer', (frame, now) => {
          if (frame.type === 'new_message' && seen) seen.take(frame, now);
        });
        // From the greeting on, every message that is not sent yet must come.
        const came = await client.open(() => {
          seen = new Seen([talker]);
        });
        if (visits > 0) returned.add(came);
        visits += 1;
        if (!came) return false;

        await pause(about(STAY));
        const until = seen.sent();
        await eventually(() => seen.isWhole(until));
        isWhole = await client.fence() && isWhole;
        isWhole = seen.close(until) && isWhole;
        check(seen, { 'each message is as it was sent, with its client_message_id': (one) => one.wrong === 0 });
        await client.close();
        check(client, { 'a close is answered': (one) => one.isClosed });
        await pause(about(AWAY));
      }
      return isWhole;
    };
    const coming = [];
    for (let i = 0; i < CLIENTS; i += 1) coming.push(comeAndGo(`client-${i}`));
    await converse([talker], RATE, DURATION);
    isOver = true;
    const whole = await Promise.all(coming);
    await eventually(() => talker.isAnswered);
    check(talker, { 'each message is answered, once': (one) => one.isAnswered });
    return whole.every((is) => is);
  });
}
