/** A call over one WebSocket, where UDP does not pass: WebCodecs for media, text messages for events. */

import { Downlink } from "./downlink";
import { CallError, refused, unreachable } from "./errors";
import type { PageMessage, ServerEvent } from "./events";
import { unpack } from "./packets";
import { sayGoodbye, waiting, type PlaceBody } from "./server";
import type { DeviceName, Entry, Handlers, NetworkStats, Resume, SessionRequest, Tracks, Transport, TransportKind } from "./transport";
import { CameraSender, MicrophoneSender } from "./uplink";
import workletUrl from "./worklet.ts?worker&url";

const CONNECT_MS = 12_000;
const CONGESTED = { camera: 60_000, microphone: 120_000 }; // bytes that wait for the network: more is delay
const RESTARTING = 1012; // the server's close code when it is being stopped

type Answer =
  | { type: "started"; session: string; resume: string; resume_s: number }
  | ({ type: "waiting" } & PlaceBody)
  | { type: "refused"; status: number; error: string; message: string };

class Socket implements Transport {
  #socket: WebSocket | null = null;
  #context: AudioContext | null = null;
  #downlink: Downlink | null = null;
  #senders: Partial<Record<DeviceName, CameraSender | MicrophoneSender>> = {};
  #base: URL | null = null;
  #session = "";
  #closed = false;
  #asked = performance.now();
  #giveUp: (error: CallError) => void = () => {};

  async open(request: SessionRequest, tracks: Tracks, handlers: Handlers): Promise<Entry> {
    this.#base = request.base;
    const given = new Promise<never>((_, reject) => (this.#giveUp = reject));
    given.catch(() => {}); // nobody may be waiting for it any more
    const timer = setTimeout(() => this.#giveUp(unreachable()), CONNECT_MS);
    try {
      return await Promise.race([this.#connect(request, tracks, handlers), given]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #connect(request: SessionRequest, tracks: Tracks, handlers: Handlers): Promise<Entry> {
    const context = (this.#context = new AudioContext({ sampleRate: 48_000, latencyHint: "interactive" }));
    await context.audioWorklet.addModule(workletUrl);
    if (this.#closed) return new Promise<never>(() => {}); // `given` has rejected
    const url = new URL("api/socket", request.base);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.#socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    const answer = await this.#ask(socket, request);
    if (answer.type === "refused") throw refused(answer.status, answer);
    if (answer.type === "waiting") {
      this.close(false);
      return waiting(answer);
    }
    this.#session = answer.session;
    const next: Resume = { token: answer.resume, ms: answer.resume_s * 1000 };
    handlers.resume(next);
    this.#listen(socket, (this.#downlink = new Downlink(context)), handlers);
    if (context.state === "suspended") addEventListener("pointerdown", () => void context.resume(), { once: true });
    handlers.remote(this.#downlink.stream);
    for (const device of ["microphone", "camera"] as const) await this.setTrack(device, tracks[device] ?? null);
    return { kind: "open" };
  }

  #ask(socket: WebSocket, { token, queue, resume }: SessionRequest): Promise<Answer> {
    return new Promise((resolve, reject) => {
      socket.onopen = () => socket.send(JSON.stringify({ type: "start", token, queue, resume }));
      socket.onmessage = ({ data }) => resolve(JSON.parse(data as string) as Answer);
      socket.onclose = () => reject(unreachable());
    });
  }

  #listen(socket: WebSocket, downlink: Downlink, handlers: Handlers): void {
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") return handlers.message(JSON.parse(data) as ServerEvent);
      const packet = unpack(data as ArrayBuffer);
      if (packet) downlink.take(packet);
    };
    socket.onclose = ({ code }) => {
      if (this.#closed) return;
      this.close(false);
      if (code !== RESTARTING) return handlers.lost();
      const nothing = { agent: "", width: 0, height: 0, fps: 0, unit_ms: 0 };
      handlers.message({ type: "session", state: "ended", message: "The server is being stopped.", ...nothing });
    };
  }

  send(message: PageMessage): boolean {
    if (this.#socket?.readyState !== WebSocket.OPEN || !this.#session) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  async setTrack(device: DeviceName, track: MediaStreamTrack | null): Promise<void> {
    this.#senders[device]?.stop();
    delete this.#senders[device];
    const socket = this.#socket;
    if (!track || !socket || !this.#context || this.#closed) return;
    const post = (message: ArrayBuffer) => socket.readyState === WebSocket.OPEN && socket.send(message);
    const congested = () => socket.bufferedAmount > CONGESTED[device];
    this.#senders[device] = device === "camera"
      ? new CameraSender(track, post, congested)
      : new MicrophoneSender(track, this.#context, post, congested);
  }

  async network(): Promise<NetworkStats> {
    const [now, downlink] = [performance.now(), this.#downlink];
    const fps = downlink ? (downlink.fps * 1000) / (now - this.#asked) : 0;
    this.#asked = now;
    if (downlink) downlink.fps = 0;
    const buffer = downlink ? downlink.queuedMs : null;
    return { fps: Math.round(fps), audioBufferMs: buffer, videoBufferMs: buffer, packetsLost: 0 };
  }

  close(goodbye: boolean): void {
    if (goodbye && this.#session && this.#base) sayGoodbye(this.#base, this.#session);
    if (goodbye) this.#session = "";
    if (this.#closed) return;
    this.#closed = true;
    this.#giveUp(new CallError("The call was ended", "It was ended before it stood.", "closed"));
    for (const sender of Object.values(this.#senders)) sender.stop();
    this.#socket?.close();
    this.#downlink?.close();
    void this.#context?.close();
  }
}

export const socket: TransportKind = {
  name: "socket",
  supported: () =>
    ["WebSocket", "VideoEncoder", "VideoDecoder", "AudioDecoder", "AudioWorkletNode"].every((name) => name in globalThis) &&
    "captureStream" in HTMLCanvasElement.prototype,
  create: () => new Socket(),
};
