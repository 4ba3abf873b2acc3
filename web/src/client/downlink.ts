/** The agent's packets -> a `MediaStream`, with WebCodecs. The picture follows the clock of what is heard. */

import type { Packet } from "./packets";

const PICTURES = 50; // decoded ones that wait for their sound: two seconds
const BEHIND = { opus: 15, vp8: 8 }; // packets in a decoder, 0.3 s: a page that is slower than that leaves some out
const SILENT_MS = 300; // without sound for so long, pictures are shown as they come

/** Chromium's way from pictures to a track. */
declare const MediaStreamTrackGenerator: { new (init: { kind: "video" }): MediaStreamTrack & { writable: WritableStream<VideoFrame> } } | undefined;

/** A track, and what shows a picture on it, which is closed. */
interface Screen {
  track: MediaStreamTrack;
  show(picture: VideoFrame): void;
}

function openScreen(): Screen {
  if (typeof MediaStreamTrackGenerator !== "undefined") {
    const track = new MediaStreamTrackGenerator({ kind: "video" });
    const writer = track.writable.getWriter();
    return { track, show: (picture) => void writer.write(picture).catch(() => picture.close()) };
  }
  const canvas = document.createElement("canvas");
  const painter = canvas.getContext("2d", { alpha: false, willReadFrequently: true })!;
  return {
    track: canvas.captureStream().getVideoTracks()[0]!,
    show: (picture) => {
      if (canvas.width !== picture.displayWidth) canvas.width = picture.displayWidth;
      if (canvas.height !== picture.displayHeight) canvas.height = picture.displayHeight;
      painter.drawImage(picture, 0, 0);
      picture.close();
    },
  };
}

export class Downlink {
  readonly stream: MediaStream;
  fps = 0; // pictures shown since `counted`
  queuedMs = 0;
  readonly #screen = openScreen();
  readonly #speaker: AudioWorkletNode;
  #hearing: AudioDecoder;
  #seeing: VideoDecoder;
  #pictures: VideoFrame[] = [];
  #heardAt = -Infinity;
  #needsKey = true;
  #inside = { opus: 0, vp8: 0 }; // packets that are being decoded
  #closed = false;

  constructor(context: AudioContext) {
    this.#speaker = new AudioWorkletNode(context, "speaker", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#speaker.port.onmessage = ({ data }: MessageEvent<{ timeUs: number | null; queuedMs: number }>) => {
      this.queuedMs = data.queuedMs;
      if (data.timeUs === null) return;
      this.#heardAt = performance.now();
      this.#show(data.timeUs);
    };
    const out = context.createMediaStreamDestination();
    this.#speaker.connect(out);
    this.stream = new MediaStream([this.#screen.track, ...out.stream.getAudioTracks()]);
    this.#hearing = this.#openHearing();
    this.#seeing = this.#openSeeing();
  }

  take({ kind, key, timeUs, data }: Packet): void {
    if (this.#closed || kind === "pcm") return;
    const behind = this.#inside[kind] >= BEHIND[kind];
    if (kind === "vp8") this.#needsKey = (this.#needsKey || behind) && (!key || behind);
    if (behind || (kind === "vp8" && this.#needsKey)) return;
    this.#inside[kind] += 1;
    if (kind === "vp8") {
      this.#seeing.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: timeUs, data }));
    } else this.#hearing.decode(new EncodedAudioChunk({ type: "key", timestamp: timeUs, data }));
  }

  #openHearing(): AudioDecoder {
    const decoder = new AudioDecoder({
      output: (sound) => {
        this.#inside.opus -= 1;
        const samples = new Float32Array(sound.numberOfFrames);
        sound.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
        this.#speaker.port.postMessage({ samples, timeUs: sound.timestamp }, [samples.buffer]);
        sound.close();
      },
      error: () => {
        if (!this.#closed) [this.#hearing, this.#inside.opus] = [this.#openHearing(), 0];
      },
    });
    decoder.configure({ codec: "opus", sampleRate: 48_000, numberOfChannels: 1 });
    return decoder;
  }

  #openSeeing(): VideoDecoder {
    const decoder = new VideoDecoder({
      output: (picture) => {
        this.#inside.vp8 -= 1;
        this.#pictures.push(picture);
        if (this.#pictures.length > PICTURES) this.#pictures.shift()!.close();
        if (performance.now() - this.#heardAt > SILENT_MS) this.#show(Infinity);
      },
      error: () => {
        if (this.#closed) return;
        [this.#seeing, this.#needsKey, this.#inside.vp8] = [this.#openSeeing(), true, 0];
      },
    });
    decoder.configure({ codec: "vp8", optimizeForLatency: true });
    return decoder;
  }

  /** Paints the newest picture that has begun by then. */
  #show(timeUs: number): void {
    let due: VideoFrame | null = null;
    while (this.#pictures[0] && this.#pictures[0].timestamp <= timeUs) {
      due?.close();
      due = this.#pictures.shift()!;
    }
    if (!due) return;
    this.fps += 1;
    this.#screen.show(due);
  }

  close(): void {
    this.#closed = true;
    this.#speaker.port.onmessage = null;
    for (const decoder of [this.#hearing, this.#seeing]) if (decoder.state !== "closed") decoder.close();
    for (const picture of this.#pictures.splice(0)) picture.close();
    for (const track of this.stream.getTracks()) track.stop();
  }
}
