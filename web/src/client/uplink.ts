/** The visitor's devices -> packets, with WebCodecs. */

import { pack } from "./packets";

const FRAME_RATE = 25;
const KEY_EVERY = 4 * FRAME_RATE; // pictures: the server begins anew with the next after a broken one
const MAX_WIDTH = 672; // twice what the server keeps
const MAX_HEIGHT = 384;
const VIDEO_BITS = 500_000;
const AUDIO_BITS = 32_000;
const QUEUE = 2; // pictures in the encoder: a machine that is slower than that leaves some out
const AUDIO_RATE = 48_000;
const FRAME_US = 20_000;

type Post = (message: ArrayBuffer) => void;

/** Chromium's way from a track to its pictures. */
interface TrackProcessor {
  readable: ReadableStream<VideoFrame>;
}
declare const MediaStreamTrackProcessor: { new (init: { track: MediaStreamTrack; maxBufferSize?: number }): TrackProcessor } | undefined;

/** Sends one camera track until `stop`. */
export class CameraSender {
  readonly #encoder: VideoEncoder;
  readonly #stopped = new AbortController();
  #size = "";
  #count = 0;
  #last = -Infinity;

  constructor(track: MediaStreamTrack, post: Post, congested: () => boolean) {
    this.#encoder = new VideoEncoder({
      output: (chunk) => post(pack("vp8", chunk.type === "key", chunk.timestamp, chunk.byteLength, (to) => chunk.copyTo(to))),
      error: () => this.stop(),
    });
    void this.#read(track, congested).catch(() => this.stop());
  }

  async #read(track: MediaStreamTrack, congested: () => boolean): Promise<void> {
    for await (const frame of pictures(track, this.#stopped.signal)) {
      const now = performance.now();
      const early = now - this.#last < 1000 / FRAME_RATE - 8; // a fast camera
      if (!early && this.#encoder.state !== "closed" && this.#encoder.encodeQueueSize <= QUEUE && !congested()) {
        this.#last = now;
        this.#encode(frame, now * 1000);
      }
      frame.close();
    }
  }

  #encode(frame: VideoFrame, timestamp: number): void {
    const scale = Math.min(1, MAX_WIDTH / frame.displayWidth, MAX_HEIGHT / frame.displayHeight);
    const [width, height] = [frame.displayWidth, frame.displayHeight].map((side) => Math.max(2, Math.round((side * scale) / 2) * 2));
    if (this.#size !== `${width}x${height}`) {
      this.#size = `${width}x${height}`; // a phone that is turned
      this.#count = 0;
      this.#encoder.configure({
        codec: "vp8", width: width!, height: height!, bitrate: VIDEO_BITS, framerate: FRAME_RATE, latencyMode: "realtime",
      });
    }
    const stamped = new VideoFrame(frame, { timestamp });
    this.#encoder.encode(stamped, { keyFrame: this.#count++ % KEY_EVERY === 0 });
    stamped.close();
  }

  stop(): void {
    this.#stopped.abort();
    if (this.#encoder.state !== "closed") this.#encoder.close();
  }
}

async function* pictures(track: MediaStreamTrack, stopped: AbortSignal): AsyncGenerator<VideoFrame> {
  if (typeof MediaStreamTrackProcessor !== "undefined") {
    const reader = new MediaStreamTrackProcessor({ track, maxBufferSize: 1 }).readable.getReader();
    stopped.addEventListener("abort", () => void reader.cancel().catch(() => {}));
    while (!stopped.aborted) {
      const { value } = await reader.read();
      if (!value) return;
      yield value;
    }
    return;
  }
  const video = document.createElement("video");
  video.muted = true;
  video.srcObject = new MediaStream([track]);
  await video.play();
  while (!stopped.aborted) {
    await new Promise<void>((resolve) => setTimeout(resolve, 1000 / FRAME_RATE));
    if (video.readyState >= video.HAVE_CURRENT_DATA) yield new VideoFrame(video, { timestamp: 0 });
  }
  video.srcObject = null;
}

/** Sends what the microphone's worklet gives, 20 ms at a time; as PCM at half the rate where no Opus encoder is. */
export class MicrophoneSender {
  readonly #encoder: AudioEncoder | null;
  readonly #source: MediaStreamAudioSourceNode;
  readonly #node: AudioWorkletNode;
  #timeUs = 0;

  constructor(track: MediaStreamTrack, context: AudioContext, post: Post, congested: () => boolean) {
    this.#encoder = "AudioEncoder" in globalThis ? new AudioEncoder({
      output: (chunk) => post(pack("opus", true, chunk.timestamp, chunk.byteLength, (to) => chunk.copyTo(to))),
      error: () => this.stop(),
    }) : null;
    this.#encoder?.configure({ codec: "opus", sampleRate: AUDIO_RATE, numberOfChannels: 1, bitrate: AUDIO_BITS });
    this.#source = context.createMediaStreamSource(new MediaStream([track]));
    this.#node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
    this.#node.port.onmessage = ({ data }: MessageEvent<Float32Array<ArrayBuffer>>) => {
      const timestamp = this.#timeUs;
      this.#timeUs += FRAME_US;
      if (!congested()) this.#send(data, timestamp, post);
    };
    this.#source.connect(this.#node);
  }

  #send(samples: Float32Array<ArrayBuffer>, timestamp: number, post: Post): void {
    if (this.#encoder?.state === "configured") {
      const sound = new AudioData({
        format: "f32", sampleRate: AUDIO_RATE, numberOfChannels: 1, numberOfFrames: samples.length, timestamp, data: samples,
      });
      this.#encoder.encode(sound);
      sound.close();
    } else if (!this.#encoder) {
      post(pack("pcm", true, timestamp, samples.length, (to) => {
        const view = new DataView(to.buffer, to.byteOffset);
        for (let i = 0; i < samples.length / 2; i++) {
          const mean = (samples[2 * i]! + samples[2 * i + 1]!) / 2;
          view.setInt16(2 * i, Math.max(-1, Math.min(1, mean)) * 32767, true);
        }
      }));
    }
  }

  stop(): void {
    this.#source.disconnect();
    this.#node.port.onmessage = null;
    if (this.#encoder && this.#encoder.state !== "closed") this.#encoder.close();
  }
}
