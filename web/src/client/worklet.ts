/**
 * Runs in the audio thread of a call over a WebSocket, at 48 kHz; it is a file of its own because audio threads load one.
 *
 *     microphone   sound of one input ──► 20 ms at a time
 *     speaker      decoded sound with its media time ──► output, and what is heard now
 *
 * The speaker waits until it has a little sound, plays without a gap as long as there is some, and drops what has piled up.
 * After each interruption it keeps more for a while, so that they do not recur.
 */

interface AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare const AudioWorkletProcessor: { new (): AudioWorkletProcessor };
declare const registerProcessor: (name: string, kind: new () => AudioWorkletProcessor) => void;

const RATE = 48_000;
const FRAME = 960; // samples: 20 ms
const START = 0.06 * RATE; // begin with so much
const STEP = 0.03 * RATE; // and so much more after an interruption
const LONGEST = 0.18 * RATE;
const SPARE = 0.1 * RATE; // more than that beside it is delay that nobody needs
const CALM = 10 * RATE; // after so long without an interruption, a step less is enough

class Microphone extends AudioWorkletProcessor {
  #frame = new Float32Array(FRAME);
  #filled = 0;

  process(inputs: Float32Array[][]): boolean {
    const [left, right] = inputs[0] ?? [];
    if (!left) return true;
    for (let i = 0; i < left.length; i++) {
      this.#frame[this.#filled++] = right ? (left[i]! + right[i]!) / 2 : left[i]!;
      if (this.#filled < FRAME) continue;
      this.port.postMessage(this.#frame, [this.#frame.buffer]);
      [this.#frame, this.#filled] = [new Float32Array(FRAME), 0];
    }
    return true;
  }
}

/** One piece of decoded sound; timeUs: when its first sample begins. */
interface Piece {
  samples: Float32Array;
  timeUs: number;
}

class Speaker extends AudioWorkletProcessor {
  #queue: Piece[] = [];
  #at = 0; // in the first piece
  #waits = true;
  #target = START;
  #calm = 0; // samples since the last interruption
  #blocks = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }: MessageEvent<Piece | "clear">) => {
      if (data === "clear") [this.#queue, this.#at, this.#waits] = [[], 0, true];
      else this.#queue.push(data);
      if (this.#queued() <= this.#target + SPARE) return;
      while (this.#queued() > this.#target) this.#drop();
    };
  }

  process(_: Float32Array[][], outputs: Float32Array[][]): boolean {
    const out = outputs[0]![0]!;
    if (this.#waits && this.#queued() >= this.#target) this.#waits = false;
    for (let i = 0; i < out.length && !this.#waits; i++) {
      const [piece] = this.#queue;
      if (!piece) {
        this.#waits = true;
        [this.#target, this.#calm] = [Math.min(this.#target + STEP, LONGEST), 0];
        break;
      }
      out[i] = piece.samples[this.#at++]!;
      if (this.#at === piece.samples.length) this.#drop();
    }
    this.#calm += out.length;
    if (this.#calm > CALM) [this.#target, this.#calm] = [Math.max(this.#target - STEP, START), 0];
    if (++this.#blocks % 4 === 0) this.#tell(); // every 11 ms
    return true;
  }

  #queued(): number {
    return this.#queue.reduce((sum, { samples }) => sum + samples.length, -this.#at);
  }

  #drop(): void {
    this.#queue.shift();
    this.#at = 0;
  }

  #tell(): void {
    const [piece] = this.#queue;
    const timeUs = piece && !this.#waits ? piece.timeUs + (this.#at / RATE) * 1e6 : null;
    this.port.postMessage({ timeUs, queuedMs: (this.#queued() / RATE) * 1000 });
  }
}

registerProcessor("microphone", Microphone);
registerProcessor("speaker", Speaker);
