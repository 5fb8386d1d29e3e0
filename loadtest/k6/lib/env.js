// What every script reads from the environment (-e NAME=VALUE), the load it makes of that, and the thresholds of all.

export function text(name, byDefault) {
  const value = __ENV[name];
  return value === undefined || value === '' ? byDefault : value;
}

/** A number, not negative. A wrong value ends the run before it begins: a load that nobody asked for is no test. */
export function number(name, byDefault) {
  const value = Number(text(name, byDefault));
  if (!Number.isFinite(value) || value < 0) {
    throw new Error(`${name}="${__ENV[name]}": a number that is not negative is accepted`);
  }
  return value;
}

/** Milliseconds, from "500ms", "25s" or "2m", as the server's own variables are written. */
export function duration(name, byDefault) {
  const written = text(name, byDefault);
  const parts = /^(\d+)(ms|s|m)$/.exec(written);
  if (!parts) {
    throw new Error(`${name}="${written}": a duration such as 500ms, 25s or 2m is accepted`);
  }
  return Number(parts[1]) * { ms: 1, s: 1000, m: 60000 }[parts[2]];
}

export const SERVER = text('URL', 'ws://127.0.0.1:8082').replace(/\/$/, '');
/** Sessions at a time; each is one VU, whatever the number of its sockets. */
export const SESSIONS = number('SESSIONS', 2);
/** How long a session lasts, once all of its connections are there. */
export const DURATION = duration('DURATION', '5s');
/** How long anything that must happen may take: only what fails waits so long. */
export const PATIENCE = duration('PATIENCE', '10s');
/** New sessions a second; 0: SESSIONS at once, and each of them once. */
const ARRIVAL = number('ARRIVAL', 0);
const RAMP = duration('RAMP', '10s');
const HOLD = duration('HOLD', '30s');

/**
 * `thresholds` are the script's own, beside those that all have. Times are in ms, and far above what an idle machine
 * needs: they are for a server that is stuck. Lower them by the variables where figures matter.
 *
 * @returns {import('k6/options').Options}
 */
export function options(thresholds) {
  /** @type {import('k6/options').Scenario} */
  const scenario = ARRIVAL > 0
    ? {
      executor: 'ramping-arrival-rate',
      startRate: 0,
      timeUnit: '1s',
      preAllocatedVUs: SESSIONS,
      maxVUs: SESSIONS,
      stages: [{ target: ARRIVAL, duration: `${RAMP}ms` }, { target: ARRIVAL, duration: `${HOLD}ms` }],
      gracefulStop: `${DURATION + 5 * PATIENCE}ms`,
    }
    : {
      executor: 'per-vu-iterations',
      vus: SESSIONS,
      iterations: number('ITERATIONS', 1),
      // Every wait of a session is bounded by PATIENCE, so that it ends, and says why, before this does it.
      maxDuration: `${number('ITERATIONS', 1) * (2 * DURATION + 10 * PATIENCE)}ms`,
    };
  return {
    scenarios: { sessions: scenario },
    // Each connection has an address of its own: as a tag it would be a time series of its own.
    systemTags: ['scenario', 'check', 'status', 'error'],
    summaryTrendStats: ['min', 'med', 'p(95)', 'p(99)', 'max'],
    thresholds: Object.assign(
      {
        checks: ['rate==1'],
        // A threshold on a rate without a sample says nothing: these two are what can't pass when nothing has run.
        chat_sessions: ['count>0'],
        chat_sessions_ok: ['rate==1'],
        chat_errors: ['count==0'],
        chat_connecting: [`p(95)<${number('CONNECT_P95', 5000)}`],
        dropped_iterations: ['count==0'],
      },
      thresholds,
    ),
  };
}

/** Those of every script that counts messages. */
export function messageThresholds() {
  return {
    chat_received: ['count>0'],
    chat_lost: ['count==0'],
    chat_doubled: ['count==0'],
    chat_reordered: ['count==0'],
    chat_ack_latency: [`p(95)<${number('ACK_P95', 2000)}`],
    chat_delivery_latency: [
      `p(95)<${number('DELIVERY_P95', 2000)}`,
      `p(99)<${number('DELIVERY_P99', 5000)}`,
    ],
  };
}
