// Chat sessions: a customer and an agent talk in turn. Each answer and each message is looked at, and both must see one
// order.
//
//   k6 run -e URL=ws://127.0.0.1:8082 -e SESSIONS=2 -e DURATION=5s loadtest/k6/chat.js

import { check } from 'k6';
import { DURATION, messageThresholds, number, options as optionsWith } from './lib/env.js';
import { eventually, inSession } from './lib/client.js';
import { converse, Seen, Sender } from './lib/messages.js';

/** Messages a second in a session, both sides together. */
const RATE = number('RATE', 4);

export const options = optionsWith(messageThresholds());

export default async function chat() {
  await inSession('chat', async (session, join) => {
    const senders = [new Sender(session, 'ann', 'customer'), new Sender(session, 'bob', 'agent')];
    const seen = senders.map(() => new Seen(senders));
    senders.forEach((sender, i) => {
      sender.client = join(sender.user, sender.type, (frame, now) => {
        if (frame.type === 'message_sent') sender.answered(frame, now);
        if (frame.type === 'new_message') seen[i].take(frame, now);
      });
    });
    const came = await Promise.all(senders.map((sender) => sender.client.open()));
    if (!came.every((is) => is)) return false;

    await converse(senders, RATE, DURATION);
    await eventually(() => seen.every((one) => one.isWhole()) && senders.every((sender) => sender.isAnswered));
    const answers = await Promise.all(senders.map((sender) => sender.client.fence()));

    const whole = seen.map((one) => one.close());
    check(null, {
      'each message is answered, once': () => senders.every((sender) => sender.isAnswered),
      'each message is as it was sent, with its client_message_id': () => seen.every((one) => one.wrong === 0),
      'answers and messages have the same ids': () => seen.every((one) => one.agreesWithAnswers()),
      'customer and agent see one order': () => seen[0].ids.join() === seen[1].ids.join(),
    });
    return answers.every((is) => is) && whole.every((is) => is);
  });
}
