/** The agent's packets -> a `MediaStream`, with WebCodecs. The picture follows the clock of what is heard. */

import type { Packet } from "./packets";

const PICTURES = 50; // decoded ones that wait for their sound: two seconds
const SILENT_MS = 300; // without sound for so long, pictures are shown as they come

export class Downlink {
  readonly stream: MediaStream;
  fps = 0; // pictures shown since `counted`
  queuedMs = 0;
  readonly #canvas = document.createElement("canvas");
  readonly #painter = this.#canvas.getContext("2d", { alpha: false })!;
  readonly #speaker: AudioWorkletNode;
  #hearing: AudioDecoder;
  #seeing: VideoDecoder;
  #pictures: VideoFrame[] = [];
  #heardAt = -Infinity;
  #needsKey = true;
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
    this.stream = new MediaStream([...this.#canvas.captureStream().getVideoTracks(), ...out.stream.getAudioTracks()]);
    this.#hearing = this.#openHearing();
    this.#seeing = this.#openSeeing();
  }

  take({ kind, key, timeUs, data }: Packet): void {
    if (this.#closed) return;
    if (kind === "vp8") {
      if (this.#needsKey && !key) return;
      this.#needsKey = false;
      this.#seeing.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: timeUs, data }));
    } else this.#hearing.decode(new EncodedAudioChunk({ type: "key", timestamp: timeUs, data }));
  }

  #openHearing(): AudioDecoder {
    const decoder = new AudioDecoder({
      output: (sound) => {
        const samples = new Float32Array(sound.numberOfFrames);
        sound.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
        this.#speaker.port.postMessage({ samples, timeUs: sound.timestamp }, [samples.buffer]);
        sound.close();
      },
      error: () => !this.#closed && (this.#hearing = this.#openHearing()),
    });
    decoder.configure({ codec: "opus", sampleRate: 48_000, numberOfChannels: 1 });
    return decoder;
  }

  #openSeeing(): VideoDecoder {
    const decoder = new VideoDecoder({
      output: (picture) => {
        this.#pictures.push(picture);
        if (this.#pictures.length > PICTURES) this.#pictures.shift()!.close();
        if (performance.now() - this.#heardAt > SILENT_MS) this.#show(Infinity);
      },
      error: () => {
        if (this.#closed) return;
        [this.#seeing, this.#needsKey] = [this.#openSeeing(), true];
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
    if (this.#canvas.width !== due.displayWidth) this.#canvas.width = due.displayWidth;
    if (this.#canvas.height !== due.displayHeight) this.#canvas.height = due.displayHeight;
    this.#painter.drawImage(due, 0, 0);
    this.fps += 1;
    due.close();
  }

  close(): void {
    this.#closed = true;
    this.#speaker.port.onmessage = null;
    for (const decoder of [this.#hearing, this.#seeing]) if (decoder.state !== "closed") decoder.close();
    for (const picture of this.#pictures.splice(0)) picture.close();
    for (const track of this.stream.getTracks()) track.stop();
  }
}
