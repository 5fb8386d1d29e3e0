// Frames to the server and from it.

export const messageFrame = ({ client_message_id, message, message_type, attachments }) => ({
  type: "send_message",
  data: { message, ...(message_type && { message_type }), ...(attachments && { attachments }), client_message_id },
});

/** An object; undefined for anything else. */
export function parse(text) {
  try {
    const frame = JSON.parse(text);
    return frame && typeof frame === "object" ? frame : undefined;
  } catch {
    return undefined;
  }
}

/** In bytes; undefined for what is not JSON. */
export function sizeOf(frame) {
  try {
    return new TextEncoder().encode(JSON.stringify(frame)).length;
  } catch {
    return undefined;
  }
}

export const newId = () =>
  globalThis.crypto?.randomUUID?.() ??
  Array.from({ length: 4 }, () => Math.random().toString(36).slice(2, 10)).join("");
