// The operations page: the server's own figures, and what they were in the last minutes.

import { element, find, say, svg } from "./ui.js";

const EVERY_MS = 2_000;
/** Samples: the chart is as wide as the fewest, and gets denser up to the most. */
const FEWEST = 30;
const KEPT = 90;

const whole = (value) => Math.round(value).toLocaleString("en");
const rate = (value) => (value < 10 ? value.toFixed(1) : whole(value));
const FIGURES = [
  ["connections", "Connections", whole, "open WebSockets"],
  ["sessions", "Sessions", whole, "with somebody connected"],
  ["messages", "Messages per second", rate, "taken by the log"],
  ["deliveries", "Deliveries per second", rate, "written to sockets"],
  ["delay", "Latency", (ms) => (ms < 10 ? `${ms.toFixed(2)} ms` : `${whole(ms)} ms`), "from the log to the sockets, mean"],
  ["nodes", "Nodes", whole, "alive in the cluster"],
];

export class Operations extends EventTarget {
  #root;
  #before;
  #samples = Object.fromEntries(FIGURES.map(([name]) => [name, []]));
  #cards = {};
  #answeredAt = 0;

  constructor(root) {
    super();
    this.#root = root;
    for (const [name, title, , hint] of FIGURES) {
      const value = element("p", { class: "value" }, "–");
      const line = svg("polyline", { fill: "none" });
      const area = svg("polygon", {});
      const chart = svg("svg", { viewBox: "0 0 180 44", preserveAspectRatio: "none", role: "img" }, area, line);
      chart.setAttribute("aria-label", `${title}: nothing is measured yet`);
      const range = element("p", { class: "range" });
      const card = element("article", { class: "figure" }, element("h3", {}, title), value, chart, range, element("p", { class: "hint" }, hint));
      this.#cards[name] = { value, line, area, chart, range, title };
      find(root, "figures").append(card);
    }
    const run = () => document.visibilityState === "visible" && this.#ask();
    setInterval(run, EVERY_MS);
    setInterval(() => this.#age(), 1_000);
    document.addEventListener("visibilitychange", run);
    run();
  }

  async #ask() {
    try {
      const signal = AbortSignal.timeout(EVERY_MS * 2);
      const response = await fetch("/demo/stats.json", { cache: "no-store", signal });
      if (!response.ok) throw new Error(String(response.status));
      this.#take(await response.json());
    } catch {
      this.#health("bad", "server does not answer");
    }
  }

  #take(stats) {
    this.#answeredAt = Date.now();
    this.needsToken = stats.needs_token;
    const before = this.#before;
    this.#before = stats;
    const now = { connections: stats.connections, sessions: stats.sessions, nodes: stats.nodes };
    // After a restart the totals begin anew.
    if (before && stats.uptime_ms > before.uptime_ms) {
      const seconds = (stats.uptime_ms - before.uptime_ms) / 1000;
      const by = (name) => stats.totals[name] - before.totals[name];
      now.messages = by("messages") / seconds;
      now.deliveries = by("deliveries") / seconds;
      if (by("delays") > 0) now.delay = by("delays_us") / by("delays") / 1000;
    }
    for (const [name, , show] of FIGURES) if (now[name] !== undefined) this.#draw(name, now[name], show);
    const { kafka, redis } = stats;
    const isOk = kafka.status === "ok" && redis.status === "ok";
    this.#health(stats.is_draining || !isOk ? "warn" : "good", stats.is_draining ? "server is draining" : isOk ? "server ok" : "server degraded");
    const uptime = duration(stats.uptime_ms);
    say(find(this.#root, "facts"), `livechat-ws ${stats.version}, ${stats.environment}, up for ${uptime}${stats.needs_token ? ", tokens on" : ""}`);
    this.#dependencies({ Kafka: kafka, Redis: redis });
    this.#age();
  }

  #draw(name, value, show) {
    const samples = this.#samples[name];
    samples.push(value);
    samples.splice(0, samples.length - KEPT);
    const card = this.#cards[name];
    say(card.value, show(value));
    const [least, most] = [Math.min(...samples), Math.max(...samples)];
    say(card.range, show(least) !== show(most) ? `${show(least)} to ${show(most)}` : "");
    const room = Math.max(samples.length, FEWEST);
    const x = (at) => (180 * (room - samples.length + at)) / (room - 1);
    const y = (sample) => 41 - (38 * sample) / (most || 1);
    const points = samples.map((sample, at) => `${x(at).toFixed(1)},${y(sample).toFixed(1)}`);
    card.line.setAttribute("points", points.join(" "));
    card.area.setAttribute("points", [`${x(0).toFixed(1)},44`, ...points, "180,44"].join(" "));
    card.chart.setAttribute("aria-label", `${card.title} in the last minutes: ${show(least)} to ${show(most)}, now ${show(value)}`);
  }

  #dependencies(all) {
    const place = find(this.#root, "dependencies");
    for (const [name, { mode, status, detail }] of Object.entries(all)) {
      let card = place.querySelector(`[data-name="${name}"]`);
      if (!card) {
        card = element("article", { class: "dependency", "data-name": name }, element("h4", {}, name), element("p", { class: "pill" }), element("p", { class: "hint" }));
        place.append(card);
      }
      const [, pill, cause] = card.children;
      say(pill, status);
      pill.dataset.is = { ok: "live", connecting: "connecting" }[status] ?? "stopped";
      const kept = name === "Kafka" ? "the log is kept in this process" : "presence is kept in this process";
      say(cause, detail ?? (mode === "embedded" ? `not configured: ${kept}` : "answers, and has what the server needs"));
    }
  }

  #age() {
    const pill = find(this.#root, "age");
    const seconds = Math.floor((Date.now() - this.#answeredAt) / 1000);
    const isFresh = seconds < 6;
    say(pill, !this.#answeredAt ? "connecting" : isFresh ? "live" : `no answer for ${seconds} s`);
    // Who can't see it is told once, not each second.
    pill.setAttribute("aria-live", isFresh || !this.#answeredAt ? "polite" : "off");
    pill.dataset.is = !this.#answeredAt ? "connecting" : isFresh ? "live" : "stopped";
  }

  #health(is, text) {
    const place = find(document, "health");
    place.dataset.is = is;
    say(find(place, "health-text"), text);
  }
}

function duration(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 1) return `${Math.floor(ms / 1000)} s`;
  if (minutes < 60) return `${minutes} min`;
  return minutes < 2_880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1_440)} days`;
}
