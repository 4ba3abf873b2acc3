// src/client/worklet.ts
const RATE = 48e3;
const FRAME = 960;
const START = .06 * RATE;
const STEP = .03 * RATE;
const LONGEST = .18 * RATE;
const SPARE = .1 * RATE;
const CALM = 10 * RATE;
var Microphone = class extends AudioWorkletProcessor {
	#frame = new Float32Array(FRAME);
	#filled = 0;
	process(inputs) {
		const [left, right] = inputs[0] ?? [];
		if (!left) return true;
		for (let i = 0; i < left.length; i++) {
			this.#frame[this.#filled++] = right ? (left[i] + right[i]) / 2 : left[i];
			if (this.#filled < FRAME) continue;
			this.port.postMessage(this.#frame, [this.#frame.buffer]);
			[this.#frame, this.#filled] = [new Float32Array(FRAME), 0];
		}
		return true;
	}
};
var Speaker = class extends AudioWorkletProcessor {
	#queue = [];
	#at = 0;
	#waits = true;
	#target = START;
	#calm = 0;
	#blocks = 0;
	constructor() {
		super();
		this.port.onmessage = ({ data }) => {
			if (data === "clear") [this.#queue, this.#at, this.#waits] = [
				[],
				0,
				true
			];
			else this.#queue.push(data);
			if (this.#queued() <= this.#target + SPARE) return;
			while (this.#queued() > this.#target) this.#drop();
		};
	}
	process(_, outputs) {
		const out = outputs[0][0];
		if (this.#waits && this.#queued() >= this.#target) this.#waits = false;
		for (let i = 0; i < out.length && !this.#waits; i++) {
			const [piece] = this.#queue;
			if (!piece) {
				this.#waits = true;
				[this.#target, this.#calm] = [Math.min(this.#target + STEP, LONGEST), 0];
				break;
			}
			out[i] = piece.samples[this.#at++];
			if (this.#at === piece.samples.length) this.#drop();
		}
		this.#calm += out.length;
		if (this.#calm > CALM) [this.#target, this.#calm] = [Math.max(this.#target - STEP, START), 0];
		if (++this.#blocks % 4 === 0) this.#tell();
		return true;
	}
	#queued() {
		return this.#queue.reduce((sum, { samples }) => sum + samples.length, -this.#at);
	}
	#drop() {
		this.#queue.shift();
		this.#at = 0;
	}
	#tell() {
		const [piece] = this.#queue;
		const timeUs = piece && !this.#waits ? piece.timeUs + this.#at / RATE * 1e6 : null;
		this.port.postMessage({
			timeUs,
			queuedMs: this.#queued() / RATE * 1e3
		});
	}
};
registerProcessor("microphone", Microphone);
registerProcessor("speaker", Speaker);
