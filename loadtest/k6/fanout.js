// Fan-out: one publisher, many readers in its session. Each message comes to each of them once, and in order.
//
//   k6 run -e SESSIONS=1 -e READERS=50 -e RATE=20 -e DURATION=5s loadtest/k6/fanout.js

import { check } from 'k6';
import { DURATION, messageThresholds, number, options as optionsWith } from './lib/env.js';
import { eventually, inSession } from './lib/client.js';
import { converse, Seen, Sender } from './lib/messages.js';

/** Connections of a session, beside the publisher's own. */
const READERS = number('READERS', 20);
/** Messages a second in a session. The server's RATE_LIMIT_MESSAGES is 20 by default: beyond it, raise that. */
const RATE = number('RATE', 10);

export const options = optionsWith(messageThresholds());

export default async function fanout() {
  await inSession('fanout', async (session, join) => {
    const publisher = new Sender(session, 'publisher', 'agent');
    const own = new Seen([publisher]);
    publisher.client = join(publisher.user, publisher.type, (frame, now) => {
      if (frame.type === 'message_sent') publisher.answered(frame, now);
      if (frame.type === 'new_message') own.take(frame, now);
    });
    const clients = [publisher.client];
    const seen = [own];
    for (let i = 0; i < READERS; i += 1) {
      const mine = new Seen([publisher]);
      seen.push(mine);
      clients.push(join(`reader-${i}`, 'customer', (frame, now) => {
        if (frame.type === 'new_message') mine.take(frame, now);
      }));
    }
    const came = await Promise.all(clients.map((client) => client.open()));
    if (!came.every((is) => is)) return false;

    await converse([publisher], RATE, DURATION);
    await eventually(() => publisher.isAnswered && seen.every((one) => one.isWhole()));
    const answers = await Promise.all(clients.map((client) => client.fence()));

    const whole = seen.map((one) => one.close());
    check(publisher, { 'each message is answered, once': (one) => one.isAnswered });
    seen.forEach((one) => check(one, {
      'each message is as it was sent, with its client_message_id': () => one.wrong === 0,
      'answers and messages have the same ids': () => one.agreesWithAnswers(),
    }));
    return answers.every((is) => is) && whole.every((is) => is);
  });
}
