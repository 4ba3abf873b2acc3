/** Binary messages of a call over a WebSocket, as in `wan_streamer/serving/peers/frames.py`. */

export type Kind = "opus" | "pcm" | "vp8";
const KINDS: Record<number, Kind> = { 1: "opus", 2: "pcm", 3: "vp8" };
const NUMBERS: Record<Kind, number> = { opus: 1, pcm: 2, vp8: 3 };
const HEADER = 10;

/** timeUs: when its sound or picture begins, on the clock of its direction. */
export interface Packet {
  kind: Kind;
  key: boolean;
  timeUs: number;
  data: Uint8Array<ArrayBuffer>;
}

/** The message for something encoded, whose bytes `copyTo` writes behind the header. */
export function pack(kind: Kind, key: boolean, timeUs: number, bytes: number, copyTo: (to: Uint8Array<ArrayBuffer>) => void): ArrayBuffer {
  const message = new ArrayBuffer(HEADER + bytes);
  const view = new DataView(message);
  view.setUint8(0, NUMBERS[kind]);
  view.setUint8(1, key ? 1 : 0);
  view.setBigInt64(2, BigInt(Math.round(timeUs)));
  copyTo(new Uint8Array(message, HEADER));
  return message;
}

export function unpack(message: ArrayBuffer): Packet | null {
  const view = new DataView(message);
  const kind = message.byteLength > HEADER ? KINDS[view.getUint8(0)] : undefined;
  if (!kind) return null;
  return { kind, key: view.getUint8(1) === 1, timeUs: Number(view.getBigInt64(2)), data: new Uint8Array(message, HEADER) };
}
