// Why a handshake failed: the browser does not say, but a plain request for the same path does.

import { retryAfter } from "./backoff.js";

/** What a refused handshake means, if it is not only for now. */
const REASONS = { 401: "unauthenticated", 403: "forbidden" };

/**
 * `{status, reason, detail, retryAfterMs, isFinal}`; without an answer only `reason`: `network`, or `origin` if there is
 * one that this page may not read.
 */
export async function askWhy(address, token, { fetch, timeoutMs, now }) {
  const ask = (options) =>
    fetch(address.replace(/^ws/, "http"), { cache: "no-store", signal: AbortSignal.timeout(timeoutMs), ...options });
  let answer;
  try {
    answer = await ask({ headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch (error) {
    const isThere = error?.name === "TypeError" && (await ask({ mode: "no-cors" }).then(() => true, () => false));
    return { reason: isThere ? "origin" : "network" };
  }
  const { status } = answer;
  const detail = (await answer.json().catch(() => undefined))?.error;
  // 426 means that nothing but the upgrade was missing.
  if (status < 400 || status === 426) return { status, reason: "handshake" };
  // What does not speak as this server does is a proxy, which may have no server for a moment.
  const isFinal = status !== 429 && status < 500 && typeof detail === "string";
  const retryAfterMs = isFinal ? 0 : retryAfter(answer.headers.get("Retry-After"), now());
  return { status, reason: REASONS[status] ?? `http_${status}`, detail, retryAfterMs, isFinal };
}
