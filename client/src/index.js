export { LiveChat } from "./livechat.js";
export { Backoff, finalReason, retryAfter } from "./backoff.js";
