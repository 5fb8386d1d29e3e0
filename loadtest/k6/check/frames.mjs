// Frames of a WebSocket server as a client gets them, for the stand-in and for the proxy that spoils them.

/** Splits a stream into the head of the HTTP answer and unmasked frames: {opcode, payload, bytes}. */
export class Frames {
  constructor(onHead, onFrame) {
    Object.assign(this, { onHead, onFrame });
    this.rest = Buffer.alloc(0);
    this.hasHead = false;
  }

  push(chunk) {
    this.rest = Buffer.concat([this.rest, chunk]);
    if (!this.hasHead) {
      const end = this.rest.indexOf('\r\n\r\n');
      if (end < 0) return;
      this.hasHead = true;
      const head = this.rest.subarray(0, end + 4);
      this.rest = this.rest.subarray(end + 4);
      this.onHead(head);
    }
    for (let frame = this.next(); frame; frame = this.next()) this.onFrame(frame);
  }

  next() {
    const all = this.rest;
    if (all.length < 2) return null;
    let length = all[1] & 0x7f;
    let at = 2;
    if (length === 126) {
      if (all.length < 4) return null;
      [length, at] = [all.readUInt16BE(2), 4];
    } else if (length === 127) {
      if (all.length < 10) return null;
      [length, at] = [Number(all.readBigUInt64BE(2)), 10];
    }
    if (all.length < at + length) return null;
    this.rest = all.subarray(at + length);
    // The server sends each message as one frame, so opcode 0 never comes.
    return { opcode: all[0] & 0x0f, payload: all.subarray(at, at + length), bytes: all.subarray(0, at + length) };
  }
}

/** One whole frame; masked as a client's must be, if there is a mask. */
export function frame(opcode, payload, mask) {
  const length = payload.length;
  const size = length < 126 ? Buffer.from([length]) : Buffer.alloc(length < 65536 ? 3 : 9);
  if (length >= 65536) {
    size[0] = 127;
    size.writeBigUInt64BE(BigInt(length), 1);
  } else if (length >= 126) {
    size[0] = 126;
    size.writeUInt16BE(length, 1);
  }
  const first = Buffer.from([0x80 | opcode]);
  if (!mask) return Buffer.concat([first, size, payload]);
  size[0] |= 0x80;
  return Buffer.concat([first, size, mask, payload.map((byte, i) => byte ^ mask[i % 4])]);
}
