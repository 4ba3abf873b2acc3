/** Records both sides of a call into one film, the visitor left and the agent right, with both voices. */

const FPS = 25;
const MIX_HZ = 48_000;
const BITS_PER_S = 1_500_000;
// The first that the browser can write.
const FORMATS = [
  'video/mp4;codecs="avc1.42E01E,mp4a.40.2"',
  'video/mp4;codecs="avc1.42E01E,opus"',
  'video/webm;codecs="vp8,opus"',
  "video/webm",
];

export interface Film {
  blob: Blob;
  extension: "mp4" | "webm";
  ms: number;
}

export class Recorder {
  readonly #canvas = document.createElement("canvas");
  readonly #audio = new AudioContext({ sampleRate: MIX_HZ });
  readonly #mix = this.#audio.createMediaStreamDestination();
  readonly #recorder: MediaRecorder;
  readonly #chunks: Blob[] = [];
  readonly #sources: Partial<Record<"left" | "right", MediaStreamAudioSourceNode>> = {};
  readonly #left: HTMLVideoElement;
  readonly #right: HTMLVideoElement;
  readonly #timer: ReturnType<typeof setInterval>;
  readonly #began = performance.now();

  static supported(): boolean {
    return "MediaRecorder" in globalThis && FORMATS.some((format) => MediaRecorder.isTypeSupported(format));
  }

  /** left, right: where the two sides are shown; their size is the agent's. */
  constructor(left: HTMLVideoElement, right: HTMLVideoElement) {
    [this.#left, this.#right] = [left, right];
    this.#canvas.width = 2 * (right.videoWidth || 336);
    this.#canvas.height = right.videoHeight || 192;
    this.#draw();
    const stream = this.#canvas.captureStream(FPS);
    for (const track of this.#mix.stream.getAudioTracks()) stream.addTrack(track);
    const mimeType = FORMATS.find((format) => MediaRecorder.isTypeSupported(format))!;
    this.#recorder = new MediaRecorder(stream, { mimeType, videoBitsPerSecond: BITS_PER_S });
    this.#recorder.ondataavailable = ({ data }) => this.#chunks.push(data);
    this.#recorder.start(1000);
    this.#timer = setInterval(() => this.#draw(), 1000 / FPS); // a frame callback would rest in a hidden tab
  }

  get ms(): number {
    return performance.now() - this.#began;
  }

  /** The sound of a side from now on; the streams may change in a call. */
  listen(side: "left" | "right", stream: MediaStream | null): void {
    this.#sources[side]?.disconnect();
    delete this.#sources[side];
    if (!stream?.getAudioTracks().length) return;
    const source = this.#audio.createMediaStreamSource(stream);
    source.connect(this.#mix);
    this.#sources[side] = source;
  }

  #draw(): void {
    const context = this.#canvas.getContext("2d")!;
    const [width, height] = [this.#canvas.width / 2, this.#canvas.height];
    context.fillStyle = "#10131c";
    context.fillRect(0, 0, 2 * width, height);
    for (const [x, video] of [[0, this.#left], [width, this.#right]] as const) {
      if (!video.srcObject || !video.videoWidth) continue;
      const scale = Math.max(width / video.videoWidth, height / video.videoHeight); // fills it, as on the page
      const [w, h] = [width / scale, height / scale];
      context.drawImage(video, (video.videoWidth - w) / 2, (video.videoHeight - h) / 2, w, h, x, 0, width, height);
    }
  }

  stop(): Promise<Film> {
    clearInterval(this.#timer);
    const ms = this.ms;
    return new Promise((resolve) => {
      this.#recorder.onstop = () => {
        void this.#audio.close();
        for (const track of this.#recorder.stream.getTracks()) track.stop();
        const type = this.#recorder.mimeType.split(";")[0]!;
        resolve({ blob: new Blob(this.#chunks, { type }), extension: type === "video/mp4" ? "mp4" : "webm", ms });
      };
      this.#recorder.stop();
    });
  }
}
