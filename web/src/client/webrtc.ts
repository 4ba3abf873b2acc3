/** A call over WebRTC: RTP for media, the data channel `events` for messages, one HTTP request to begin. */

import { CallError, unreachable } from "./errors";
import type { PageMessage, ServerEvent } from "./events";
import { askIce, post, sayGoodbye, waiting, type PlaceBody } from "./server";
import type {
  DeviceName, Entry, Handlers, NetworkStats, SessionRequest, Tracks, Transport, TransportKind,
} from "./transport";

const GATHERING_MS = 1500;
const CONNECT_MS = 12_000; // a network that drops UDP silently is given up
const DISCONNECTED_MS = 3000; // so long the browser may find another way by itself

interface AnswerBody {
  sdp: string;
  type: RTCSdpType;
  session: string;
  resume: string;
  resume_s: number;
}

class WebRtc implements Transport {
  readonly #pc = new RTCPeerConnection({ iceServers: [] });
  readonly #channel = this.#pc.createDataChannel("events");
  readonly #senders: Partial<Record<DeviceName, RTCRtpSender>> = {};
  readonly #previous: Partial<Record<string, { delay: number; count: number }>> = {};
  #base: URL | null = null;
  #session = "";
  #open = false;
  #closed = false;
  #goodbye = false;
  #giveUp: (error: CallError) => void = () => {};

  async open(request: SessionRequest, tracks: Tracks, handlers: Handlers): Promise<Entry> {
    const pc = this.#pc;
    this.#base = request.base;
    const given = new Promise<never>((_, reject) => (this.#giveUp = reject));
    given.catch(() => {}); // nobody may be waiting for it any more
    const opened = new Promise<void>((resolve) => (this.#channel.onopen = () => resolve()));
    this.#listen(handlers);
    this.#senders.microphone = pc.addTransceiver(tracks.microphone ?? "audio", { direction: "sendrecv" }).sender;
    const video = pc.addTransceiver(tracks.camera ?? "video", { direction: "sendrecv" });
    this.#senders.camera = video.sender;
    preferVp8(video);

    const iceServers = await askIce(request);
    if (!this.#closed && iceServers.length > 0) pc.setConfiguration({ iceServers });
    await pc.setLocalDescription(await pc.createOffer());
    await Promise.race([gathered(pc), given]);
    const { sdp } = pc.localDescription!;
    const offer = { sdp, type: "offer", queue: request.queue, resume: request.resume };
    const answer = await post<AnswerBody | PlaceBody>(request, "api/offer", offer);
    this.#session = "queue" in answer ? answer.queue : answer.session;
    if (this.#closed) this.#end(); // the goodbye that had to wait for the answer
    if ("queue" in answer) {
      this.#session = ""; // the place is the caller's to keep
      this.close(false);
      return waiting(answer);
    }
    handlers.resume({ token: answer.resume, ms: answer.resume_s * 1000 });
    if (!this.#closed) await pc.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    const timer = setTimeout(() => this.#giveUp(unreachable()), CONNECT_MS);
    try {
      await Promise.race([opened, given]);
    } finally {
      clearTimeout(timer);
    }
    this.#open = true;
    return { kind: "open" };
  }

  #listen(handlers: Handlers): void {
    const pc = this.#pc;
    const remote = new MediaStream();
    pc.ontrack = ({ track }) => {
      remote.addTrack(track);
      handlers.remote(remote);
    };
    const lost = () => {
      if (this.#closed) return;
      if (!this.#open) return this.#giveUp(unreachable());
      this.close(false);
      handlers.lost();
    };
    pc.onconnectionstatechange = async () => {
      if (pc.connectionState === "disconnected") await new Promise((resolve) => setTimeout(resolve, DISCONNECTED_MS));
      if (["failed", "disconnected"].includes(pc.connectionState)) lost();
    };
    this.#channel.onmessage = ({ data }) => handlers.message(JSON.parse(data as string) as ServerEvent);
    this.#channel.onclose = lost;
  }

  send(message: PageMessage): boolean {
    if (this.#channel.readyState !== "open") return false;
    this.#channel.send(JSON.stringify(message));
    return true;
  }

  async setTrack(device: DeviceName, track: MediaStreamTrack | null): Promise<void> {
    await this.#senders[device]?.replaceTrack(track);
  }

  async network(): Promise<NetworkStats> {
    const network: NetworkStats = { fps: 0, audioBufferMs: null, videoBufferMs: null, packetsLost: 0 };
    for (const stat of (await this.#pc.getStats()).values()) {
      if (stat.type !== "inbound-rtp") continue;
      // an average since the last time: difference of total delay by difference of items
      const now = { delay: stat.jitterBufferDelay ?? 0, count: stat.jitterBufferEmittedCount ?? 0 };
      const before = this.#previous[stat.kind] ?? { delay: 0, count: 0 };
      const items = now.count - before.count;
      const buffer = items > 0 ? ((now.delay - before.delay) / items) * 1000 : null;
      this.#previous[stat.kind] = now;
      network.packetsLost += stat.packetsLost ?? 0;
      if (stat.kind === "video") [network.fps, network.videoBufferMs] = [stat.framesPerSecond ?? 0, buffer];
      else network.audioBufferMs = buffer;
    }
    return network;
  }

  close(goodbye: boolean): void {
    this.#goodbye ||= goodbye;
    this.#closed = true;
    this.#giveUp(new CallError("The call was ended", "It was ended before it stood.", "closed"));
    this.#channel.close();
    this.#pc.close();
    this.#end();
  }

  #end(): void {
    if (!this.#goodbye || !this.#session || !this.#base) return;
    sayGoodbye(this.#base, this.#session);
    this.#session = "";
  }
}

/** VP8 costs the server a quarter of what H264 does. The order counts only in the browser's own offer. */
function preferVp8(transceiver: RTCRtpTransceiver): void {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs ?? [];
  const first = codecs.filter(({ mimeType }) => mimeType === "video/VP8");
  if (first.length > 0 && "setCodecPreferences" in transceiver) {
    transceiver.setCodecPreferences([...first, ...codecs.filter((codec) => !first.includes(codec))]);
  }
}

/** The offer carries all candidates, because the server takes none later. */
function gathered(pc: RTCPeerConnection): Promise<void> {
  return new Promise((resolve) => {
    const done = () => pc.iceGatheringState === "complete" && resolve();
    pc.addEventListener("icegatheringstatechange", done);
    setTimeout(resolve, GATHERING_MS);
    done();
  });
}

export const webrtc: TransportKind = {
  name: "webrtc",
  supported: () => "RTCPeerConnection" in globalThis,
  create: () => new WebRtc(),
};
