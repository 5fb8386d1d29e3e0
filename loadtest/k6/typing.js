// Typing: in each round everyone starts and stops, one after the other. All others are told, once each; the typist, who
// has several connections, on none of them.
//
//   k6 run -e SESSIONS=2 -e USERS=3 -e TABS=2 -e DURATION=5s loadtest/k6/typing.js

import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { DURATION, number, options as optionsWith } from './lib/env.js';
import { eventually, inSession, pause } from './lib/client.js';

const USERS = number('USERS', 3);
const TABS = number('TABS', 2);

const received = new Counter('chat_typing_received');
const lost = new Counter('chat_typing_lost');
const doubled = new Counter('chat_typing_doubled');
const echoed = new Counter('chat_typing_echoed');
const latency = new Trend('chat_typing_latency', true);

export const options = optionsWith({
  chat_typing_received: ['count>0'],
  chat_typing_lost: ['count==0'],
  chat_typing_doubled: ['count==0'],
  chat_typing_echoed: ['count==0'],
  chat_typing_latency: [`p(95)<${number('TYPING_P95', 2000)}`],
});

/** The server holds back a start that comes within a second of the last one, unless there was a stop between. */
const ROUND = 1200;

export default async function typing() {
  await inSession('typing', async (session, join) => {
    /** What is announced now: who, which of the two, when, and the connections that have been told. */
    let turn = null;
    let wrong = 0;
    const types = {};
    const connections = [];
    for (let u = 0; u < USERS; u += 1) {
      const user = `typist-${u}`;
      types[user] = u % 2 === 0 ? 'customer' : 'agent';
      for (let tab = 0; tab < TABS; tab += 1) {
        const index = connections.length;
        connections.push(join(user, types[user], (frame, now) => {
          if (frame.type !== 'typing_indicator') return;
          const data = frame.data;
          if (data.session_id !== session || data.sender_type !== types[data.user_id]) wrong += 1;
          if (data.user_id === user) {
            echoed.add(1);
          } else if (turn && data.user_id === turn.user && data.is_typing === turn.isTyping && !turn.told.has(index)) {
            turn.told.add(index);
            received.add(1);
            latency.add(now - turn.at);
          } else {
            // Told before, or in an earlier turn.
            doubled.add(1);
          }
        }));
      }
    }
    received.add(0);
    const came = await Promise.all(connections.map((connection) => connection.open()));
    if (!came.every((is) => is)) return false;

    const announce = async (user, isTyping) => {
      const tab = connections.find((connection) => connection.user === user);
      const others = connections.filter((connection) => connection.user !== user).length;
      turn = { user, isTyping, at: Date.now(), told: new Set() };
      if (isTyping) {
        tab.send('typing_start');
        // Both names mean the same, and the second is a repetition: nobody is told again.
        tab.send('agent_typing', { is_typing: true });
      } else {
        tab.send('typing_stop');
      }
      await eventually(() => turn.told.size === others);
      lost.add(others - turn.told.size);
      return turn.told.size === others;
    };
    let whole = true;
    const end = Date.now() + DURATION;
    do {
      const began = Date.now();
      for (const user of Object.keys(types)) {
        whole = await announce(user, true) && whole;
        whole = await announce(user, false) && whole;
      }
      await pause(began + ROUND - Date.now());
    } while (Date.now() < end && whole);
    const answers = await Promise.all(connections.map((connection) => connection.fence()));

    doubled.add(0);
    echoed.add(0);
    check(null, { 'each indicator names its session and the type of who types': () => wrong === 0 });
    return answers.every((is) => is) && whole;
  });
}
