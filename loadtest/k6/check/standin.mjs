// Runs a script of this folder as k6 is documented to: the modules that it imports, a context of its own for each VU,
// the two executors of lib/env.js, thresholds and the exit status. It is for checking the scripts on a machine without
// k6; it makes no load worth measuring.
//
//   node --experimental-vm-modules standin.mjs run [-e NAME=VALUE]... SCRIPT
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import vm from 'node:vm';

import { WebSocket } from './websocket.mjs';

/** k6's own: a threshold was crossed; the script did not load. */
const THRESHOLDS_CROSSED = 99;
const SCRIPT_EXCEPTION = 107;

const env = { ...process.env };
const [verb, ...args] = process.argv.slice(2);
while (args[0] === '-e') {
  const [name, ...value] = args[1].split('=');
  env[name] = value.join('=');
  args.splice(0, 2);
}
if (verb !== 'run' || args.length !== 1) throw new Error('usage: standin.mjs run [-e NAME=VALUE]... SCRIPT');
const script = path.resolve(args[0]);

/** Every value of every metric, by name. */
const metrics = new Map();

class Metric {
  constructor(name) {
    this.name = name;
    if (!metrics.has(name)) metrics.set(name, { kind: this.constructor.name, values: [] });
  }

  add(value) { metrics.get(this.name).values.push(Number(value)); }
}
class Counter extends Metric {}
class Rate extends Metric {}
class Trend extends Metric {}
const checks = new Rate('checks');
const dropped = new Counter('dropped_iterations');
const failedChecks = new Map();

/** What still holds an iteration open, as sockets and timers do in k6. */
class Vu {
  constructor(id) {
    Object.assign(this, { id, pending: 0, failure: null });
  }

  /** A callback of the script's; what it throws ends the iteration. */
  call(callback, ...values) {
    try {
      callback(...values);
    } catch (error) {
      this.failure = this.failure || error;
    }
  }

  modules() {
    const vu = this;
    const timer = (start, isOnce) => (callback, ms) => {
      vu.pending += 1;
      const handle = { isOver: false };
      handle.id = start(() => {
        if (isOnce) vu.clear(handle);
        vu.call(callback);
      }, ms);
      return handle;
    };
    return {
      k6: {
        check: (value, sets) => Object.entries(sets).map(([name, holds]) => {
          const ok = Boolean(holds(value));
          checks.add(ok);
          if (!ok) failedChecks.set(name, (failedChecks.get(name) || 0) + 1);
          return ok;
        }).every((ok) => ok),
      },
      'k6/execution': { default: { vu: { idInTest: vu.id } } },
      'k6/metrics': { Counter, Rate, Trend },
      'k6/timers': { setTimeout: timer(setTimeout, true), clearTimeout: (handle) => vu.clear(handle) },
      'k6/websockets': { WebSocket: class extends WebSocket { constructor(url) { super(url, vu); } } },
    };
  }

  clear(handle) {
    if (!handle || handle.isOver) return;
    handle.isOver = true;
    clearTimeout(handle.id);
    this.pending -= 1;
  }

  async load() {
    // Nothing of Node's is in there: a script that needs it would not run in k6 either.
    const context = vm.createContext({ __ENV: env, __VU: this.id, console });
    const builtIn = this.modules();
    const known = new Map();
    const link = async (name, parent) => {
      const key = name in builtIn ? name : path.resolve(path.dirname(parent.identifier), name);
      if (!known.has(key)) known.set(key, this.module(key, builtIn[key], context));
      return known.get(key);
    };
    const main = await this.module(script, undefined, context);
    await main.link(link);
    await main.evaluate();
    this.exports = main.namespace;
  }

  async module(key, exports, context) {
    if (!exports) return new vm.SourceTextModule(await readFile(key, 'utf8'), { identifier: key, context });
    return new vm.SyntheticModule(
      Object.keys(exports),
      function fill() { Object.entries(exports).forEach(([name, value]) => this.setExport(name, value)); },
      { identifier: key, context },
    );
  }

  async iterate() {
    try {
      await this.exports.default();
      while (this.pending > 0 && !this.failure) await new Promise((resolve) => { setTimeout(resolve, 5); });
      if (this.failure) throw this.failure;
    } catch (error) {
      console.error(`VU ${this.id}: ${error.stack || error}`);
    }
    this.failure = null;
  }
}

const ms = (written) => Number(/^(\d+)ms$/.exec(written)[1]);

/** Both return when all is over; what had no time or no VU is counted as dropped. */
const EXECUTORS = {
  async 'per-vu-iterations'({ vus, iterations, maxDuration }) {
    const run = async (vu) => {
      for (let i = 0; i < iterations; i += 1) await vu.iterate();
    };
    await within(ms(maxDuration), Promise.all((await loaded(vus)).map(run)));
  },
  async 'ramping-arrival-rate'({ startRate, preAllocatedVUs, stages, gracefulStop }) {
    const idle = await loaded(preAllocatedVUs);
    const running = new Set();
    let [rate, due] = [startRate, 0];
    for (const stage of stages) {
      const [from, began, length] = [rate, Date.now(), ms(stage.duration)];
      for (let now = 0; now < length; now = Date.now() - began) {
        const before = now;
        await new Promise((resolve) => { setTimeout(resolve, 10); });
        rate = from + (stage.target - from) * Math.min(1, now / length);
        for (due += (rate * (Date.now() - began - before)) / 1000; due >= 1; due -= 1) {
          const vu = idle.pop();
          if (!vu) {
            dropped.add(1);
            continue;
          }
          const one = vu.iterate().then(() => { idle.push(vu); running.delete(one); });
          running.add(one);
        }
      }
      rate = stage.target;
    }
    await within(ms(gracefulStop), Promise.all(running));
  },
};

async function loaded(count) {
  const vus = Array.from({ length: count }, (_, i) => new Vu(i + 1));
  await Promise.all(vus.map((vu) => vu.load()));
  return vus;
}

async function within(time, work) {
  let timer;
  const late = new Promise((resolve) => { timer = setTimeout(resolve, time, 'late'); });
  if (await Promise.race([work, late]) === 'late') {
    console.error('iterations were interrupted');
    dropped.add(1);
  }
  clearTimeout(timer);
}

/** One value of a metric, by the name that thresholds use. */
function value({ kind, values }, name) {
  const sum = values.reduce((all, one) => all + one, 0);
  if (kind === 'Counter' && name === 'count') return sum;
  if (kind === 'Rate' && name === 'rate') return sum / values.length;
  const percentile = /^p\((\d+)\)$/.exec(name);
  if (kind === 'Trend' && percentile) {
    const sorted = [...values].sort((a, b) => a - b);
    return sorted[Math.max(0, Math.ceil((sorted.length * percentile[1]) / 100) - 1)];
  }
  throw new Error(`a ${kind} has no ${name}`);
}

const HOLDS = { '==': (a, b) => a === b, '<': (a, b) => a < b, '>': (a, b) => a > b };

function judge(thresholds) {
  const crossed = [];
  for (const [name, expressions] of Object.entries(thresholds)) {
    const metric = metrics.get(name);
    if (!metric) throw new Error(`a threshold on ${name}, which is no metric`);
    for (const expression of expressions) {
      const [, what, operator, limit] = /^(.+?)(==|<|>)(.+)$/.exec(expression);
      // k6 is known to let a rate without samples pass: nothing may lean on its failing.
      const isEmpty = metric.kind !== 'Counter' && metric.values.length === 0;
      const ok = isEmpty || HOLDS[operator](value(metric, what), Number(limit));
      const shown = isEmpty ? 'no samples' : value(metric, what);
      console.log(`  ${ok ? 'ok     ' : 'CROSSED'} ${name} ${expression}: ${shown}`);
      if (!ok && !crossed.includes(name)) crossed.push(name);
    }
  }
  failedChecks.forEach((count, name) => console.log(`  failed ${count}: ${name}`));
  return crossed;
}

const first = new Vu(0);
try {
  await first.load();
} catch (error) {
  console.error(error.message);
  process.exit(SCRIPT_EXCEPTION);
}
const { scenarios, thresholds } = JSON.parse(JSON.stringify(first.exports.options));
for (const scenario of Object.values(scenarios)) await EXECUTORS[scenario.executor](scenario);
const crossed = judge(thresholds);
if (crossed.length > 0) {
  // k6's own words: check.sh reads them from either.
  console.error(`thresholds on metrics '${crossed.join(', ')}' have been crossed`);
}
process.exit(crossed.length > 0 ? THRESHOLDS_CROSSED : 0);
