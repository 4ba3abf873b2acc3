// src/client/errors.ts
/** A problem that a person can understand. `title` is short, `message` says what to do, `code` is for programs. */
var CallError = class extends Error {
	title;
	code;
	constructor(title, message, code = "error") {
		super(message);
		this.title = title;
		this.code = code;
	}
};
/** The server was asked and does not answer. */
function offline() {
	return new CallError("The server does not answer", "Check that it is still running, then start again.", "offline");
}
/** The server answers, but no media get through: the call tries the next transport. */
function unreachable() {
	return new CallError("No way through the network", "The server answers, but sound and picture do not get through. A firewall may block UDP; try another network.", "unreachable");
}
/** What stands between the visitor and a call, from the server's refusal. */
function refused(status, body) {
	return new CallError({
		busy: "Too many visitors wait",
		model: "The agent cannot start",
		token: "The agent asks for a token"
	}[body.error ?? ""] ?? "The server refused the call", body.message ?? `It answered with status ${status}.`, body.error ?? "error");
}
// src/client/devices.ts
/** Microphone and camera: opened with what a call needs, and their problems in words. */
var DEVICE_NAMES = ["microphone", "camera"];
var CONSTRAINTS = {
	microphone: {
		echoCancellation: true,
		noiseSuppression: true,
		autoGainControl: true,
		channelCount: { ideal: 1 }
	},
	camera: {
		width: { ideal: 336 },
		height: { ideal: 192 },
		frameRate: {
			ideal: 25,
			max: 30
		}
	}
};
/** id: which one; "": the browser's choice. Raises `CallError` with code "permission" or "device". */
async function openDevice(device, id) {
	const constraints = id ? {
		...CONSTRAINTS[device],
		deviceId: { exact: id }
	} : CONSTRAINTS[device];
	try {
		const wanted = device === "microphone" ? { audio: constraints } : { video: constraints };
		return (await navigator.mediaDevices.getUserMedia(wanted)).getTracks()[0];
	} catch (error) {
		throw explained(error, device);
	}
}
function explained(error, device) {
	const name = error instanceof DOMException ? error.name : "";
	if (name === "NotAllowedError") return new CallError(`No permission for the ${device}`, `Allow the ${device} in the browser's address bar.`, "permission");
	if (name === "NotReadableError") return new CallError(`The ${device} is in use`, "Another program uses it. Close that program and try again.", "device");
	return new CallError(`No ${device} found`, "Plug one in or choose another device.", "device");
}
/** What is plugged in. Names appear only after permission was given once. */
async function listDevices(device) {
	const kind = device === "microphone" ? "audioinput" : "videoinput";
	return (await navigator.mediaDevices?.enumerateDevices() ?? []).filter((found) => found.kind === kind && found.deviceId && found.deviceId !== "default").map(({ deviceId, label }) => ({
		id: deviceId,
		label: label || device
	}));
}
// src/client/emitter.ts
/** Events by name, with the type of what each carries. */
var Emitter = class {
	#handlers = {};
	on(name, handler) {
		(this.#handlers[name] ??= []).push(handler);
	}
	emit(name, detail) {
		for (const handler of this.#handlers[name] ?? []) handler(detail);
	}
};
// src/client/server.ts
/** Requests to the server, for all transports. */
function waiting(body) {
	return {
		kind: "waiting",
		ticket: body.queue,
		place: body.place,
		estimateS: body.estimate_s
	};
}
function bearer(token) {
	return token ? { Authorization: `Bearer ${token}` } : {};
}
/** Posts JSON. Raises `CallError` if the server does not answer or refuses. */
async function post(request, path, body) {
	const response = await fetch(new URL(path, request.base), {
		method: "POST",
		headers: {
			"Content-Type": "application/json",
			...bearer(request.token)
		},
		body: JSON.stringify(body)
	}).catch(() => null);
	if (!response) throw offline();
	const answer = await response.json().catch(() => ({}));
	if (!response.ok) throw refused(response.status, answer);
	return answer;
}
/** Ends a session or gives up a place in the line, also while the page goes away. */
function sayGoodbye(base, session) {
	const body = new Blob([JSON.stringify({ session })], { type: "application/json" });
	navigator.sendBeacon(new URL("api/close", base), body);
}
/** The next step of one that waits: "ready" to open a call, "gone" from the line, or its place. */
async function askLine(base, ticket, signal) {
	const response = await fetch(new URL("api/queue", base), {
		headers: bearer(ticket),
		signal
	}).catch(() => null);
	if (response?.status === 404) return "gone";
	if (!response?.ok) throw offline();
	const body = await response.json();
	return body.ready ? "ready" : {
		...body,
		queue: ticket
	};
}
/** STUN and TURN servers that the server was configured with; usually none. */
async function askIce({ base, token }) {
	const response = await fetch(new URL("api/ice", base), { headers: bearer(token) }).catch(() => null);
	if (!response?.ok) return [];
	return (await response.json()).ice_servers;
}
/** What the agent understands, if its makers wrote that down. */
async function askAbout(base, token) {
	const response = await fetch(new URL("api/status", base), { headers: bearer(token) }).catch(() => null);
	if (!response?.ok) return null;
	return (await response.json()).agent ?? null;
}
// src/client/downlink.ts
var PICTURES = 50;
var BEHIND = {
	opus: 15,
	vp8: 8
};
var SILENT_MS = 300;
function openScreen() {
	if (typeof MediaStreamTrackGenerator !== "undefined") {
		const track = new MediaStreamTrackGenerator({ kind: "video" });
		const writer = track.writable.getWriter();
		return {
			track,
			show: (picture) => void writer.write(picture).catch(() => picture.close())
		};
	}
	const canvas = document.createElement("canvas");
	const painter = canvas.getContext("2d", {
		alpha: false,
		willReadFrequently: true
	});
	return {
		track: canvas.captureStream().getVideoTracks()[0],
		show: (picture) => {
			if (canvas.width !== picture.displayWidth) canvas.width = picture.displayWidth;
			if (canvas.height !== picture.displayHeight) canvas.height = picture.displayHeight;
			painter.drawImage(picture, 0, 0);
			picture.close();
		}
	};
}
var Downlink = class {
	stream;
	fps = 0;
	queuedMs = 0;
	#screen = openScreen();
	#speaker;
	#hearing;
	#seeing;
	#pictures = [];
	#heardAt = -Infinity;
	#needsKey = true;
	#inside = {
		opus: 0,
		vp8: 0
	};
	#closed = false;
	constructor(context) {
		this.#speaker = new AudioWorkletNode(context, "speaker", {
			numberOfInputs: 0,
			outputChannelCount: [1]
		});
		this.#speaker.port.onmessage = ({ data }) => {
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
	take({ kind, key, timeUs, data }) {
		if (this.#closed || kind === "pcm") return;
		const behind = this.#inside[kind] >= BEHIND[kind];
		if (kind === "vp8") this.#needsKey = (this.#needsKey || behind) && (!key || behind);
		if (behind || kind === "vp8" && this.#needsKey) return;
		this.#inside[kind] += 1;
		if (kind === "vp8") this.#seeing.decode(new EncodedVideoChunk({
			type: key ? "key" : "delta",
			timestamp: timeUs,
			data
		}));
		else this.#hearing.decode(new EncodedAudioChunk({
			type: "key",
			timestamp: timeUs,
			data
		}));
	}
	#openHearing() {
		const decoder = new AudioDecoder({
			output: (sound) => {
				this.#inside.opus -= 1;
				const samples = new Float32Array(sound.numberOfFrames);
				sound.copyTo(samples, {
					planeIndex: 0,
					format: "f32-planar"
				});
				this.#speaker.port.postMessage({
					samples,
					timeUs: sound.timestamp
				}, [samples.buffer]);
				sound.close();
			},
			error: () => {
				if (!this.#closed) [this.#hearing, this.#inside.opus] = [this.#openHearing(), 0];
			}
		});
		decoder.configure({
			codec: "opus",
			sampleRate: 48e3,
			numberOfChannels: 1
		});
		return decoder;
	}
	#openSeeing() {
		const decoder = new VideoDecoder({
			output: (picture) => {
				this.#inside.vp8 -= 1;
				this.#pictures.push(picture);
				if (this.#pictures.length > PICTURES) this.#pictures.shift().close();
				if (performance.now() - this.#heardAt > SILENT_MS) this.#show(Infinity);
			},
			error: () => {
				if (this.#closed) return;
				[this.#seeing, this.#needsKey, this.#inside.vp8] = [
					this.#openSeeing(),
					true,
					0
				];
			}
		});
		decoder.configure({
			codec: "vp8",
			optimizeForLatency: true
		});
		return decoder;
	}
	/** Paints the newest picture that has begun by then. */
	#show(timeUs) {
		let due = null;
		while (this.#pictures[0] && this.#pictures[0].timestamp <= timeUs) {
			due?.close();
			due = this.#pictures.shift();
		}
		if (!due) return;
		this.fps += 1;
		this.#screen.show(due);
	}
	close() {
		this.#closed = true;
		this.#speaker.port.onmessage = null;
		for (const decoder of [this.#hearing, this.#seeing]) if (decoder.state !== "closed") decoder.close();
		for (const picture of this.#pictures.splice(0)) picture.close();
		for (const track of this.stream.getTracks()) track.stop();
	}
};
// src/client/packets.ts
var KINDS = {
	1: "opus",
	2: "pcm",
	3: "vp8"
};
var NUMBERS = {
	opus: 1,
	pcm: 2,
	vp8: 3
};
var HEADER = 10;
/** The message for something encoded, whose bytes `copyTo` writes behind the header. */
function pack(kind, key, timeUs, bytes, copyTo) {
	const message = new ArrayBuffer(HEADER + bytes);
	const view = new DataView(message);
	view.setUint8(0, NUMBERS[kind]);
	view.setUint8(1, key ? 1 : 0);
	view.setBigInt64(2, BigInt(Math.round(timeUs)));
	copyTo(new Uint8Array(message, HEADER));
	return message;
}
function unpack(message) {
	const view = new DataView(message);
	const kind = message.byteLength > HEADER ? KINDS[view.getUint8(0)] : void 0;
	if (!kind) return null;
	return {
		kind,
		key: view.getUint8(1) === 1,
		timeUs: Number(view.getBigInt64(2)),
		data: new Uint8Array(message, HEADER)
	};
}
// src/client/uplink.ts
/** The visitor's devices -> packets, with WebCodecs. */
var FRAME_RATE = 25;
var KEY_EVERY = 100;
var MAX_WIDTH = 672;
var MAX_HEIGHT = 384;
var VIDEO_BITS = 5e5;
var AUDIO_BITS = 32e3;
var QUEUE = 2;
var AUDIO_RATE = 48e3;
var FRAME_US = 2e4;
/** Sends one camera track until `stop`. */
var CameraSender = class {
	#encoder;
	#stopped = new AbortController();
	#size = "";
	#count = 0;
	#last = -Infinity;
	constructor(track, post, congested) {
		this.#encoder = new VideoEncoder({
			output: (chunk) => post(pack("vp8", chunk.type === "key", chunk.timestamp, chunk.byteLength, (to) => chunk.copyTo(to))),
			error: () => this.stop()
		});
		this.#read(track, congested).catch(() => this.stop());
	}
	async #read(track, congested) {
		for await (const frame of pictures(track, this.#stopped.signal)) {
			const now = performance.now();
			if (!(now - this.#last < 1e3 / FRAME_RATE - 8) && this.#encoder.state !== "closed" && this.#encoder.encodeQueueSize <= QUEUE && !congested()) {
				this.#last = now;
				this.#encode(frame, now * 1e3);
			}
			frame.close();
		}
	}
	#encode(frame, timestamp) {
		const scale = Math.min(1, MAX_WIDTH / frame.displayWidth, MAX_HEIGHT / frame.displayHeight);
		const [width, height] = [frame.displayWidth, frame.displayHeight].map((side) => Math.max(2, Math.round(side * scale / 2) * 2));
		if (this.#size !== `${width}x${height}`) {
			this.#size = `${width}x${height}`;
			this.#count = 0;
			this.#encoder.configure({
				codec: "vp8",
				width,
				height,
				bitrate: VIDEO_BITS,
				framerate: FRAME_RATE,
				latencyMode: "realtime"
			});
		}
		const stamped = new VideoFrame(frame, { timestamp });
		this.#encoder.encode(stamped, { keyFrame: this.#count++ % KEY_EVERY === 0 });
		stamped.close();
	}
	stop() {
		this.#stopped.abort();
		if (this.#encoder.state !== "closed") this.#encoder.close();
	}
};
async function* pictures(track, stopped) {
	if (typeof MediaStreamTrackProcessor !== "undefined") {
		const reader = new MediaStreamTrackProcessor({
			track,
			maxBufferSize: 1
		}).readable.getReader();
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
		await new Promise((resolve) => setTimeout(resolve, 1e3 / FRAME_RATE));
		if (video.readyState >= video.HAVE_CURRENT_DATA) yield new VideoFrame(video, { timestamp: 0 });
	}
	video.srcObject = null;
}
/** Sends what the microphone's worklet gives, 20 ms at a time; as PCM at half the rate where no Opus encoder is. */
var MicrophoneSender = class {
	#encoder;
	#source;
	#node;
	#timeUs = 0;
	constructor(track, context, post, congested) {
		this.#encoder = "AudioEncoder" in globalThis ? new AudioEncoder({
			output: (chunk) => post(pack("opus", true, chunk.timestamp, chunk.byteLength, (to) => chunk.copyTo(to))),
			error: () => this.stop()
		}) : null;
		this.#encoder?.configure({
			codec: "opus",
			sampleRate: AUDIO_RATE,
			numberOfChannels: 1,
			bitrate: AUDIO_BITS
		});
		this.#source = context.createMediaStreamSource(new MediaStream([track]));
		this.#node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
		this.#node.port.onmessage = ({ data }) => {
			const timestamp = this.#timeUs;
			this.#timeUs += FRAME_US;
			if (!congested()) this.#send(data, timestamp, post);
		};
		this.#source.connect(this.#node);
	}
	#send(samples, timestamp, post) {
		if (this.#encoder?.state === "configured") {
			const sound = new AudioData({
				format: "f32",
				sampleRate: AUDIO_RATE,
				numberOfChannels: 1,
				numberOfFrames: samples.length,
				timestamp,
				data: samples
			});
			this.#encoder.encode(sound);
			sound.close();
		} else if (!this.#encoder) post(pack("pcm", true, timestamp, samples.length, (to) => {
			const view = new DataView(to.buffer, to.byteOffset);
			for (let i = 0; i < samples.length / 2; i++) {
				const mean = (samples[2 * i] + samples[2 * i + 1]) / 2;
				view.setInt16(2 * i, Math.max(-1, Math.min(1, mean)) * 32767, true);
			}
		}));
	}
	stop() {
		this.#source.disconnect();
		this.#node.port.onmessage = null;
		if (this.#encoder && this.#encoder.state !== "closed") this.#encoder.close();
	}
};
// src/client/worklet.ts?worker&url
var worklet_default = new URL("worklet.js", import.meta.url).href;
// src/client/socket.ts
/** A call over one WebSocket, where UDP does not pass: WebCodecs for media, text messages for events. */
var CONNECT_MS$1 = 12e3;
var CONGESTED = {
	camera: 6e4,
	microphone: 12e4
};
var RESTARTING = 1012;
var Socket = class {
	#socket = null;
	#context = null;
	#downlink = null;
	#senders = {};
	#base = null;
	#session = "";
	#closed = false;
	#asked = performance.now();
	#giveUp = () => {};
	async open(request, tracks, handlers) {
		this.#base = request.base;
		const given = new Promise((_, reject) => this.#giveUp = reject);
		given.catch(() => {});
		const timer = setTimeout(() => this.#giveUp(unreachable()), CONNECT_MS$1);
		try {
			return await Promise.race([this.#connect(request, tracks, handlers), given]);
		} finally {
			clearTimeout(timer);
		}
	}
	async #connect(request, tracks, handlers) {
		const context = this.#context = new AudioContext({
			sampleRate: 48e3,
			latencyHint: "interactive"
		});
		await context.audioWorklet.addModule(worklet_default);
		if (this.#closed) return new Promise(() => {});
		const url = new URL("api/socket", request.base);
		url.protocol = url.protocol.replace("http", "ws");
		const socket = this.#socket = new WebSocket(url);
		socket.binaryType = "arraybuffer";
		const answer = await this.#ask(socket, request);
		if (answer.type === "refused") throw refused(answer.status, answer);
		if (answer.type === "waiting") {
			this.close(false);
			return waiting(answer);
		}
		this.#session = answer.session;
		const next = {
			token: answer.resume,
			ms: answer.resume_s * 1e3
		};
		handlers.resume(next);
		this.#listen(socket, this.#downlink = new Downlink(context), handlers);
		if (context.state === "suspended") addEventListener("pointerdown", () => void context.resume(), { once: true });
		handlers.remote(this.#downlink.stream);
		for (const device of ["microphone", "camera"]) await this.setTrack(device, tracks[device] ?? null);
		return { kind: "open" };
	}
	#ask(socket, { token, queue, resume }) {
		return new Promise((resolve, reject) => {
			socket.onopen = () => socket.send(JSON.stringify({
				type: "start",
				token,
				queue,
				resume
			}));
			socket.onmessage = ({ data }) => resolve(JSON.parse(data));
			socket.onclose = () => reject(unreachable());
		});
	}
	#listen(socket, downlink, handlers) {
		socket.onmessage = ({ data }) => {
			if (typeof data === "string") return handlers.message(JSON.parse(data));
			const packet = unpack(data);
			if (packet) downlink.take(packet);
		};
		socket.onclose = ({ code }) => {
			if (this.#closed) return;
			this.close(false);
			if (code !== RESTARTING) return handlers.lost();
			handlers.message({
				type: "session",
				state: "ended",
				message: "The server is being stopped.",
				agent: "",
				width: 0,
				height: 0,
				fps: 0,
				unit_ms: 0
			});
		};
	}
	send(message) {
		if (this.#socket?.readyState !== WebSocket.OPEN || !this.#session) return false;
		this.#socket.send(JSON.stringify(message));
		return true;
	}
	async setTrack(device, track) {
		this.#senders[device]?.stop();
		delete this.#senders[device];
		const socket = this.#socket;
		if (!track || !socket || !this.#context || this.#closed) return;
		const post = (message) => socket.readyState === WebSocket.OPEN && socket.send(message);
		const congested = () => socket.bufferedAmount > CONGESTED[device];
		this.#senders[device] = device === "camera" ? new CameraSender(track, post, congested) : new MicrophoneSender(track, this.#context, post, congested);
	}
	async network() {
		const [now, downlink] = [performance.now(), this.#downlink];
		const fps = downlink ? downlink.fps * 1e3 / (now - this.#asked) : 0;
		this.#asked = now;
		if (downlink) downlink.fps = 0;
		const buffer = downlink ? downlink.queuedMs : null;
		return {
			fps: Math.round(fps),
			audioBufferMs: buffer,
			videoBufferMs: buffer,
			packetsLost: 0
		};
	}
	close(goodbye) {
		if (goodbye && this.#session && this.#base) sayGoodbye(this.#base, this.#session);
		if (goodbye) this.#session = "";
		if (this.#closed) return;
		this.#closed = true;
		this.#giveUp(new CallError("The call was ended", "It was ended before it stood.", "closed"));
		for (const sender of Object.values(this.#senders)) sender.stop();
		this.#socket?.close();
		this.#downlink?.close();
		this.#context?.close();
	}
};
var socket = {
	name: "socket",
	supported: () => [
		"WebSocket",
		"VideoEncoder",
		"VideoDecoder",
		"AudioDecoder",
		"AudioWorkletNode"
	].every((name) => name in globalThis) && "captureStream" in HTMLCanvasElement.prototype,
	create: () => new Socket()
};
// src/client/webrtc.ts
/** A call over WebRTC: RTP for media, the data channel `events` for messages, one HTTP request to begin. */
var GATHERING_MS = 1500;
var CONNECT_MS = 12e3;
var DISCONNECTED_MS = 3e3;
var WebRtc = class {
	#pc = new RTCPeerConnection({ iceServers: [] });
	#channel = this.#pc.createDataChannel("events");
	#senders = {};
	#previous = {};
	#base = null;
	#session = "";
	#open = false;
	#closed = false;
	#goodbye = false;
	#giveUp = () => {};
	async open(request, tracks, handlers) {
		const pc = this.#pc;
		this.#base = request.base;
		const given = new Promise((_, reject) => this.#giveUp = reject);
		given.catch(() => {});
		const opened = new Promise((resolve) => this.#channel.onopen = () => resolve());
		this.#listen(handlers);
		this.#senders.microphone = pc.addTransceiver(tracks.microphone ?? "audio", { direction: "sendrecv" }).sender;
		const video = pc.addTransceiver(tracks.camera ?? "video", { direction: "sendrecv" });
		this.#senders.camera = video.sender;
		preferVp8(video);
		const iceServers = await askIce(request);
		if (!this.#closed && iceServers.length > 0) pc.setConfiguration({ iceServers });
		await pc.setLocalDescription(await pc.createOffer());
		await Promise.race([gathered(pc), given]);
		const { sdp } = pc.localDescription;
		const answer = await post(request, "api/offer", {
			sdp,
			type: "offer",
			queue: request.queue,
			resume: request.resume
		});
		this.#session = "queue" in answer ? answer.queue : answer.session;
		if (this.#closed) this.#end();
		if ("queue" in answer) {
			this.#session = "";
			this.close(false);
			return waiting(answer);
		}
		handlers.resume({
			token: answer.resume,
			ms: answer.resume_s * 1e3
		});
		if (!this.#closed) await pc.setRemoteDescription({
			type: answer.type,
			sdp: answer.sdp
		});
		const timer = setTimeout(() => this.#giveUp(unreachable()), CONNECT_MS);
		try {
			await Promise.race([opened, given]);
		} finally {
			clearTimeout(timer);
		}
		this.#open = true;
		return { kind: "open" };
	}
	#listen(handlers) {
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
		this.#channel.onmessage = ({ data }) => handlers.message(JSON.parse(data));
		this.#channel.onclose = lost;
	}
	send(message) {
		if (this.#channel.readyState !== "open") return false;
		this.#channel.send(JSON.stringify(message));
		return true;
	}
	async setTrack(device, track) {
		await this.#senders[device]?.replaceTrack(track);
	}
	async network() {
		const network = {
			fps: 0,
			audioBufferMs: null,
			videoBufferMs: null,
			packetsLost: 0
		};
		for (const stat of (await this.#pc.getStats()).values()) {
			if (stat.type !== "inbound-rtp") continue;
			const now = {
				delay: stat.jitterBufferDelay ?? 0,
				count: stat.jitterBufferEmittedCount ?? 0
			};
			const before = this.#previous[stat.kind] ?? {
				delay: 0,
				count: 0
			};
			const items = now.count - before.count;
			const buffer = items > 0 ? (now.delay - before.delay) / items * 1e3 : null;
			this.#previous[stat.kind] = now;
			network.packetsLost += stat.packetsLost ?? 0;
			if (stat.kind === "video") [network.fps, network.videoBufferMs] = [stat.framesPerSecond ?? 0, buffer];
			else network.audioBufferMs = buffer;
		}
		return network;
	}
	close(goodbye) {
		this.#goodbye ||= goodbye;
		this.#closed = true;
		this.#giveUp(new CallError("The call was ended", "It was ended before it stood.", "closed"));
		this.#channel.close();
		this.#pc.close();
		this.#end();
	}
	#end() {
		if (!this.#goodbye || !this.#session || !this.#base) return;
		sayGoodbye(this.#base, this.#session);
		this.#session = "";
	}
};
/** VP8 costs the server a quarter of what H264 does. The order counts only in the browser's own offer. */
function preferVp8(transceiver) {
	const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs ?? [];
	const first = codecs.filter(({ mimeType }) => mimeType === "video/VP8");
	if (first.length > 0 && "setCodecPreferences" in transceiver) transceiver.setCodecPreferences([...first, ...codecs.filter((codec) => !first.includes(codec))]);
}
/** The offer carries all candidates, because the server takes none later. */
function gathered(pc) {
	return new Promise((resolve) => {
		const done = () => pc.iceGatheringState === "complete" && resolve();
		pc.addEventListener("icegatheringstatechange", done);
		setTimeout(resolve, GATHERING_MS);
		done();
	});
}
var webrtc = {
	name: "webrtc",
	supported: () => "RTCPeerConnection" in globalThis,
	create: () => new WebRtc()
};
// src/client/call.ts
/**
* One call: devices, transport, the line, messages, lost connections. No page elements here.
*
*     const call = new Call();
*     call.on("caption", ({ lane, text }) => console.log(lane, text));
*     call.on("remote", (stream) => (video.srcObject = stream));
*     await call.start({ base: new URL("agent/", location.href) });
*     call.say("hello");
*     call.stop();
*/
var PING_MS = 1e3;
var RETRY_MS = 1e3;
var RETRIES = 5;
var SILENCE_MS = 8e3;
var ASLEEP_MS = 4e3;
/** In the order in which a call tries them. */
var TRANSPORTS = [webrtc, socket];
var Call = class extends Emitter {
	#options;
	#transport = null;
	#kind = "";
	#ticket = "";
	#timer;
	#tracks = {};
	#rtt = null;
	#ticked = 0;
	#heard = 0;
	#resume = null;
	#lostAt = 0;
	#ended = false;
	#leaving = new AbortController();
	/** Opens the devices and connects as soon as there is a place. Raises `CallError`; code "devices": none could be opened. */
	async start(options) {
		this.#options = options;
		if (!globalThis.isSecureContext || !navigator.mediaDevices) throw new CallError("This page cannot use a microphone", "Browsers allow it only on https:// or on localhost. Open the page in one of these ways.", "insecure");
		if (options.resume) this.#resume = {
			token: options.resume,
			ms: 0
		};
		await this.#openDevices();
		if (this.#ended) return;
		this.#tellLocal();
		await this.#enter();
	}
	async #openDevices() {
		const { microphone = true, camera = true } = this.#options;
		const wanted = DEVICE_NAMES.filter((device) => ({
			microphone,
			camera
		})[device]);
		if (wanted.length > 0) this.#emitState({
			state: "connecting",
			message: `Asking for ${wanted.join(" and ")}`
		});
		const problems = [];
		for (const device of wanted) {
			try {
				this.#adopt(device, await openDevice(device, this.#options[`${device}Id`] ?? ""));
			} catch (error) {
				const problem = error;
				problems.push(problem);
				this.emit("device", {
					device,
					state: "problem",
					problem
				});
			}
			if (this.#ended) return this.#stopTracks();
		}
		const [first] = problems;
		if (first && problems.length === wanted.length) throw new CallError(first.title, first.message, "devices");
	}
	/** Connects as soon as there is a place. */
	async #enter() {
		do {
			if (!this.#lostAt) this.#emitState({
				state: "connecting",
				message: "Connecting"
			});
			const entry = await this.#open();
			if (entry.kind === "open") return this.#opened();
			this.#ticket = entry.ticket;
			if (this.#ended) return this.#leaveLine();
			this.#showPlace(entry.place, entry.estimateS);
		} while (await this.#wait());
	}
	/** Tries one transport after the other. */
	async #open() {
		let problem = unreachable();
		for (const kind of this.#options.transports ?? TRANSPORTS) {
			if (!kind.supported()) continue;
			const transport = this.#transport = kind.create();
			this.#kind = kind.name;
			const { base, token = "" } = this.#options;
			const before = this.#resume;
			try {
				const request = {
					base,
					token,
					queue: this.#ticket,
					resume: before?.token ?? ""
				};
				return await transport.open(request, this.#tracks, {
					resume: (next) => transport === this.#transport && (this.#resume = next),
					message: (event) => transport === this.#transport && this.#receive(event),
					remote: (stream) => transport === this.#transport && this.emit("remote", stream),
					lost: () => transport === this.#transport && void this.#lost("lost")
				});
			} catch (error) {
				if (this.#ended || !(error instanceof CallError) || error.code !== "unreachable") throw error;
				problem = error;
				transport.close(!before);
				if (!before) this.#resume = null;
			}
		}
		throw problem;
	}
	#opened() {
		if (this.#ended) return;
		this.#ticket = "";
		this.#heard = this.#ticked = performance.now();
		this.#lostAt = 0;
		this.#tellDevices();
		this.#timer = setInterval(() => void this.#tick(), PING_MS);
		this.#tick();
	}
	/** Waits in line. Returns false if the visitor goes away. */
	async #wait() {
		for (let failures = 0; !this.#ended;) try {
			const turn = await askLine(this.#options.base, this.#ticket, this.#leaving.signal);
			if (turn === "gone") this.#ticket = "";
			if (turn === "gone" || turn === "ready") return !this.#ended;
			failures = 0;
			this.#showPlace(turn.place, turn.estimate_s);
		} catch {
			if (++failures > RETRIES) throw offline();
			await this.#pause();
		}
		return false;
	}
	#showPlace(place, estimateS) {
		const minutes = Math.round((estimateS ?? 0) / 60);
		const about = minutes < 1 ? "less than a minute" : `about ${minutes} minute${minutes > 1 ? "s" : ""}`;
		const message = `You are number ${place} in line${estimateS === null ? "" : `, ${about}`}`;
		if (!this.#ended) this.#emitState({
			state: "waiting",
			message,
			place,
			estimateS
		});
	}
	async #tick() {
		const [now, late] = [performance.now(), performance.now() - this.#ticked - PING_MS];
		this.#ticked = now;
		if (now - this.#heard > SILENCE_MS) {
			if (late < ASLEEP_MS) return this.#lost("lost");
			this.#heard = now - SILENCE_MS + ASLEEP_MS;
		}
		const transport = this.#transport;
		this.#send({
			type: "ping",
			t: now
		});
		const network = await transport?.network().catch(() => null);
		if (network && transport === this.#transport) this.emit("network", {
			...network,
			rttMs: this.#rtt,
			transport: this.#kind
		});
	}
	#receive(event) {
		this.#heard = performance.now();
		if (event.type === "pong") {
			this.#rtt = performance.now() - event.t;
			return;
		}
		this.emit("message", {
			from: "server",
			message: event
		});
		if (event.type !== "session") this.emit(event.type, event);
		else if (event.state === "live") this.#emitState({
			state: "live",
			session: event
		});
		else if (event.state === "recovering") this.#emitState({
			state: "recovering",
			message: event.message
		});
		else if (event.state === "ended") this.#fail(event.message);
		else this.#again();
	}
	/** Types a message to the agent. Returns false if the call is not open. */
	say(text) {
		return this.#send({
			type: "text",
			text
		});
	}
	/** Drops what the agent has still to say of what was computed. */
	clear() {
		return this.#send({ type: "clear" });
	}
	isOn(device) {
		return device in this.#tracks;
	}
	/** Switches a device on or off during the call, or to another one. Raises `CallError`; the device is off then. */
	async setDevice(device, on, id = "") {
		let track = null;
		try {
			if (on) track = await openDevice(device, id);
		} catch (error) {
			await this.#replace(device, null);
			this.emit("device", {
				device,
				state: "problem",
				problem: error
			});
			throw error;
		}
		await this.#replace(device, track);
		if (!on) this.emit("device", {
			device,
			state: "off"
		});
	}
	async #replace(device, track) {
		if (this.#ended) return track?.stop();
		const old = this.#tracks[device];
		if (track) this.#adopt(device, track);
		else delete this.#tracks[device];
		await this.#transport?.setTrack(device, track);
		old?.stop();
		this.#tellDevices();
		this.#tellLocal();
	}
	/** Takes a track into use; what the system does with it is told to the page and to the agent. */
	#adopt(device, track) {
		this.#tracks[device] = track;
		const current = () => this.#tracks[device] === track && !this.#ended;
		track.onended = async () => {
			if (!current()) return;
			await this.#replace(device, null);
			this.emit("device", {
				device,
				state: "lost"
			});
		};
		track.onmute = track.onunmute = () => {
			if (!current()) return;
			this.#tellDevices();
			this.emit("device", {
				device,
				state: track.muted ? "silenced" : "on"
			});
		};
		this.emit("device", {
			device,
			state: track.muted ? "silenced" : "on"
		});
	}
	#tellDevices() {
		const sends = (device) => this.#tracks[device]?.muted === false;
		this.#send({
			type: "devices",
			microphone: sends("microphone"),
			camera: sends("camera")
		});
	}
	#tellLocal() {
		this.emit("local", new MediaStream(Object.values(this.#tracks)));
	}
	#send(message) {
		const sent = this.#transport?.send(message) ?? false;
		if (sent && message.type !== "ping") this.emit("message", {
			from: "page",
			message
		});
		return sent;
	}
	/** Another visitor was faster: there is no conversation yet. */
	async #again() {
		this.#disconnect(false);
		[this.#resume, this.#heard] = [null, 0];
		try {
			await this.#enter();
		} catch (error) {
			this.#fail(error.message);
		}
	}
	/** The connection is lost: goes on with the conversation over another one, as long as the server waits for that. */
	async #lost(why) {
		if (this.#ended || this.#lostAt) return;
		const asleep = performance.now() - this.#ticked > 5e3;
		this.#disconnect(false);
		this.#lostAt = performance.now();
		const resume = this.#resume;
		while (resume && this.#heard && !this.#ended && performance.now() - this.#lostAt < resume.ms) {
			this.#showLoss(asleep ? "asleep" : why);
			try {
				return await this.#enter();
			} catch {
				this.#disconnect(false);
				await this.#pause();
			}
		}
		this.#fail(navigator.onLine ? "The connection to the server was lost." : "This device has no network.");
	}
	#showLoss(why) {
		const real = navigator.onLine ? why : "offline";
		const message = {
			offline: "No network: connecting again when it is back",
			asleep: "The page was asleep: connecting again",
			lost: "The connection was lost: connecting again"
		}[real];
		this.#emitState({
			state: "reconnecting",
			message,
			why: real
		});
	}
	/** Until it is worth trying again; at once when the network comes back. */
	#pause() {
		return new Promise((resolve) => {
			const done = () => {
				clearTimeout(timer);
				removeEventListener("online", done);
				resolve();
			};
			const timer = setTimeout(done, RETRY_MS);
			addEventListener("online", done);
		});
	}
	#fail(message) {
		this.#end(message, true, true);
	}
	#disconnect(goodbye) {
		clearInterval(this.#timer);
		const transport = this.#transport;
		this.#transport = null;
		transport?.close(goodbye);
	}
	/** Ends the call; safe at any time and more than once. */
	stop() {
		this.#end("Call ended", false, true);
	}
	/** The page goes away, perhaps to be loaded again. Returns what that one needs; null outside a call. */
	leave() {
		const kept = this.#heard && !this.#ended ? this.#resume : null;
		this.#end("Call ended", false, !kept);
		return kept && {
			token: kept.token,
			until: Date.now() + kept.ms
		};
	}
	#end(message, failed, goodbye) {
		if (this.#ended) return;
		this.#ended = true;
		this.#leaving.abort();
		this.#stopTracks();
		this.#disconnect(goodbye);
		this.#leaveLine();
		this.#emitState({
			state: "ended",
			message,
			failed
		});
	}
	#leaveLine() {
		if (this.#ticket) sayGoodbye(this.#options.base, this.#ticket);
		this.#ticket = "";
	}
	#stopTracks() {
		for (const track of Object.values(this.#tracks)) track.stop();
	}
	#emitState(state) {
		this.emit("state", state);
	}
};
// src/page/dom.ts
/** What every part of the page needs of its elements. */
function $(id) {
	const element = document.getElementById(id);
	if (!element) throw new Error(`no element ${id}`);
	return element;
}
/** Tells a screen reader what the eye sees anyway. */
function announce(message) {
	$("announcer").textContent = message;
}
/** Milliseconds as 1:02 or 1:00:02. */
function clock(ms) {
	const seconds = Math.max(0, Math.floor(ms / 1e3));
	const [h, m, s] = [
		Math.floor(seconds / 3600),
		Math.floor(seconds / 60) % 60,
		seconds % 60
	];
	const two = (value) => String(value).padStart(2, "0");
	return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}
/** A name for a file of this moment. */
function fileName(what, extension) {
	const now = /* @__PURE__ */ new Date();
	return `${what} ${(/* @__PURE__ */ new Date(now.getTime() - now.getTimezoneOffset() * 6e4)).toISOString().slice(0, 16).replace("T", " ").replace(":", ".")}.${extension}`;
}
function download(blob, name) {
	const url = URL.createObjectURL(blob);
	Object.assign(document.createElement("a"), {
		href: url,
		download: name
	}).click();
	setTimeout(() => URL.revokeObjectURL(url), 6e4);
}
// src/page/notices.ts
/** The box below the picture: errors stay until they are closed, notices go by themselves. */
var NOTICE_MS = 2e4;
var timer;
function showError(title, text = "", action) {
	show("error", title, text, action);
}
function showNotice(title, text = "") {
	show("notice", title, text);
	timer = setTimeout(hideAlert, NOTICE_MS);
}
function hideAlert() {
	clearTimeout(timer);
	$("alert").hidden = true;
}
function show(kind, title, text, action) {
	clearTimeout(timer);
	$("alert").dataset.kind = kind;
	$("alert-title").textContent = title;
	$("alert-text").textContent = text;
	const button = $("alert-action");
	button.hidden = !action;
	button.textContent = action?.label ?? "";
	button.onclick = () => {
		hideAlert();
		action?.run();
	};
	$("alert").hidden = false;
}
// src/page/transcript.ts
var UNIT_MS$1 = 160;
var PAUSE_UNITS = 10;
/** Whether `line` belongs after `other`: what was heard in a unit was said before what is answered in it. */
function isLater(line, other) {
	return line.atMs > other.atMs || line.atMs === other.atMs && line.speaker === "response" && other.speaker !== "response";
}
var Transcript = class {
	lines = [];
	agent = "Agent";
	#open = {};
	#turn = {};
	#began = 0;
	#connected = 0;
	/** Units are counted from here; now: of the page's clock. */
	connected(now) {
		this.#connected = now;
		this.#began ||= now;
		this.#open = {};
		this.#turn = {};
	}
	/** Adds a piece of text to its line. */
	caption({ lane, unit, text }) {
		const open = this.#open[lane];
		if (open && unit - open.unit <= PAUSE_UNITS) {
			open.unit = unit;
			open.line.text += text;
			return open.line;
		}
		const line = this.#add(lane, this.#connected - this.#began + unit * UNIT_MS$1, text.trimStart());
		this.#open[lane] = {
			line,
			unit
		};
		(this.#turn[lane] ??= []).push(line);
		return line;
	}
	/** The next text of this lane is another utterance. `text`, if any, is what was said in this one: of its lines the
	* first has it, the others go. Returns them. */
	ended(lane, text) {
		const [first, ...others] = this.#turn[lane] ?? [];
		delete this.#open[lane];
		delete this.#turn[lane];
		if (!first || !text) return [];
		first.text = text;
		for (const line of others) this.lines.splice(this.lines.indexOf(line), 1);
		return [first, ...others];
	}
	typed(text, now) {
		return this.#add("typed", now - this.#began, text);
	}
	#add(speaker, atMs, text) {
		const line = {
			speaker,
			atMs,
			text
		};
		let place = this.lines.length;
		while (place > 0 && isLater(this.lines[place - 1], line)) place--;
		this.lines.splice(place, 0, line);
		return line;
	}
	name(speaker) {
		return {
			response: this.agent,
			transcript: "You",
			typed: "You (typed)"
		}[speaker];
	}
	toString() {
		return this.lines.map((line) => `${clock(line.atMs)}  ${this.name(line.speaker)}: ${line.text.trim()}\n`).join("");
	}
};
// src/page/captions.ts
var MAX_SHOWN = 500;
var SUBTITLE_MS = 6e3;
var NEAR_PX = 40;
var Captions = class {
	#transcript = new Transcript();
	#elements = /* @__PURE__ */ new Map();
	#timer;
	#follows = true;
	#top = 0;
	#list = $("captions");
	constructor() {
		this.#list.addEventListener("scroll", () => this.#scrolled());
		new ResizeObserver(() => this.#follows && this.#scroll()).observe(this.#list);
		$("latest").addEventListener("click", () => this.#scroll());
		$("copy").addEventListener("click", () => void this.#copy());
		$("save").addEventListener("click", () => {
			download(new Blob([this.#transcript.toString()], { type: "text/plain" }), fileName("conversation", "txt"));
		});
	}
	set agent(name) {
		this.#transcript.agent = name;
	}
	clear() {
		const agent = this.#transcript.agent;
		this.#transcript = new Transcript();
		this.#transcript.agent = agent;
		this.#elements.clear();
		this.#list.replaceChildren();
		this.#showButtons();
		this.#scroll();
		this.subtitle("");
	}
	connected() {
		this.#transcript.connected(performance.now());
	}
	add(event) {
		const line = this.#transcript.caption(event);
		this.#show(line);
		if (event.lane === "response") this.subtitle(line.text);
	}
	/** `text`, if any, is what was said in the turn. */
	ended(lane, text) {
		const [first, ...gone] = this.#transcript.ended(lane, text);
		if (first) this.#show(first);
		for (const line of gone) {
			this.#elements.get(line)?.parentElement?.remove();
			this.#elements.delete(line);
		}
	}
	typed(text) {
		this.#show(this.#transcript.typed(text, performance.now()));
		this.#scroll();
	}
	subtitle(text) {
		const words = text.trim();
		$("subtitle").textContent = words.length > 120 ? `… ${words.slice(-120).replace(/^\S*\s/, "")}` : words;
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => $("subtitle").textContent = "", SUBTITLE_MS);
	}
	#show(line) {
		this.#scrolled();
		const element = this.#elements.get(line) ?? this.#bubble(line);
		element.textContent = line.text.trim();
		if (this.#follows) this.#scroll();
	}
	#bubble(line) {
		const bubble = document.createElement("p");
		const head = document.createElement("span");
		const name = document.createElement("b");
		name.textContent = this.#transcript.name(line.speaker);
		const time = document.createElement("time");
		time.textContent = clock(line.atMs);
		head.append(name, " ", time);
		const item = document.createElement("li");
		item.className = item.dataset.lane = line.speaker;
		item.append(head, bubble);
		this.#list.insertBefore(item, this.#list.children[this.#placeOf(line)] ?? null);
		while (this.#list.children.length > MAX_SHOWN) this.#list.firstElementChild?.remove();
		this.#elements.set(line, bubble);
		this.#showButtons();
		return bubble;
	}
	/** Its place among the bubbles, of which the first may have been removed. */
	#placeOf(line) {
		const { lines } = this.#transcript;
		return lines.indexOf(line) - (lines.length - 1 - this.#list.children.length);
	}
	#scroll() {
		this.#list.scrollTop = this.#list.scrollHeight;
		this.#scrolled();
	}
	#scrolled() {
		const { scrollHeight, scrollTop, clientHeight } = this.#list;
		if (scrollHeight - scrollTop - clientHeight < NEAR_PX) this.#follows = true;
		else if (scrollTop < this.#top) this.#follows = false;
		this.#top = scrollTop;
		$("latest").hidden = this.#follows;
	}
	#showButtons() {
		for (const id of ["copy", "save"]) $(id).disabled = this.#transcript.lines.length === 0;
	}
	async #copy() {
		try {
			await navigator.clipboard.writeText(this.#transcript.toString());
		} catch {
			return showError("The browser does not allow copying", "Save the conversation instead, or select its text.");
		}
		announce("The conversation was copied.");
		const button = $("copy");
		button.textContent = "Copied";
		setTimeout(() => button.textContent = "Copy", 2e3);
	}
};
// src/page/devices.ts
/** Buttons, keys and pickers of microphone and camera, the level of the microphone, the visitor's own picture. */
var KEYS = {
	m: "microphone",
	v: "camera"
};
var WORDS = {
	microphone: "Microphone",
	camera: "Camera"
};
var Devices = class {
	/** That of the page; null outside a call. */
	call = null;
	#meter = null;
	#asked = 0;
	constructor() {
		for (const name of DEVICE_NAMES) {
			$(`toggle-${name}`).addEventListener("click", () => void this.#switch(name, !this.isOn(name)));
			$(name).addEventListener("change", () => this.isOn(name) && void this.#switch(name, true));
		}
		addEventListener("keydown", (event) => this.#key(event));
		navigator.mediaDevices?.addEventListener?.("devicechange", () => void this.#plugged());
		this.showLocal(null);
		this.list();
	}
	isOn(name) {
		return $(`toggle-${name}`).getAttribute("aria-pressed") === "true";
	}
	setOn(name, on) {
		$(`toggle-${name}`).setAttribute("aria-pressed", String(on));
	}
	chosen(name) {
		return $(name).value;
	}
	#key(event) {
		const name = KEYS[event.key.toLowerCase()];
		const typing = event.target instanceof Element && event.target.closest("input, select, textarea, [contenteditable]");
		if (!name || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
		this.#switch(name, !this.isOn(name));
		announce(`${WORDS[name]} ${this.isOn(name) ? "on" : "off"}`);
	}
	async #switch(name, on) {
		this.setOn(name, on);
		try {
			await this.call?.setDevice(name, on, this.chosen(name));
		} catch (error) {
			const { title, message } = error;
			showError(title ?? "The device could not be opened", message);
		}
	}
	/** What a call tells about a device. */
	show({ device, state, problem }) {
		if (state !== "silenced") this.setOn(device, state === "on");
		$(`toggle-${device}`).classList.toggle("silenced", state === "silenced");
		if (state === "silenced") showNotice(`The system holds the ${device} back`, "The agent knows. It comes back by itself.");
		if (state === "problem" && problem) showNotice(`${problem.title}. The call goes on without it.`, problem.message);
		if (state === "lost") this.#replace(device);
	}
	/** A device that went away in a call: another one takes its place, if there is one. */
	async #replace(device) {
		await this.list();
		$(device).value = "";
		try {
			await this.call?.setDevice(device, true);
			if (this.call) showNotice(`The ${device} went away`, "Another one is used now.");
		} catch {
			showNotice(`The ${device} went away`, "The call goes on without it.");
		}
	}
	async #plugged() {
		const before = DEVICE_NAMES.map((name) => this.chosen(name));
		await this.list();
		for (const [i, name] of DEVICE_NAMES.entries()) if (before[i] && !this.chosen(name) && this.call?.isOn(name)) await this.#switch(name, true);
	}
	async list() {
		const asked = ++this.#asked;
		const found = await Promise.all(DEVICE_NAMES.map(listDevices));
		if (asked !== this.#asked) return;
		for (const [i, name] of DEVICE_NAMES.entries()) {
			const [select, choices] = [$(name), found[i]];
			const chosen = select.value;
			select.replaceChildren(new Option(`Default ${name}`, ""), ...choices.map(({ id, label }) => new Option(label, id)));
			select.value = choices.some(({ id }) => id === chosen) ? chosen : "";
		}
	}
	showLocal(stream) {
		const video = stream?.getVideoTracks().length ? stream : null;
		$("self-video").srcObject = video;
		$("stage").classList.toggle("with-self", video !== null);
		this.#meter?.close();
		this.#meter = stream?.getAudioTracks().length ? showLevel(stream) : null;
		const sound = stream?.getAudioTracks()[0];
		const cancels = sound?.getSettings().echoCancellation !== false;
		$("hint").textContent = !sound ? "A headset gives the best sound." : cancels ? "Echo cancellation is on. A headset gives the best sound." : "This browser cancels no echo: use a headset, or the agent hears itself.";
	}
};
/** A level bar, so that a visitor sees whether the microphone works. */
function showLevel(stream) {
	const context = new AudioContext();
	const analyser = new AnalyserNode(context, { fftSize: 512 });
	context.createMediaStreamSource(stream).connect(analyser);
	const samples = new Float32Array(analyser.fftSize);
	const show = (level) => $("level").style.transform = `scaleX(${level})`;
	const timer = setInterval(() => {
		analyser.getFloatTimeDomainData(samples);
		const rms = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
		show(Math.min(1, Math.sqrt(rms) * 1.6));
	}, 100);
	return { close() {
		clearInterval(timer);
		context.close();
		show(0);
	} };
}
// src/page/latency.ts
var UNIT_MS = 160;
var STAGE_ORDER = {
	"server: to model": 1,
	"server: from model": 3,
	"server: playout": 4
};
var ms = (value) => value === null || value === void 0 || Number.isNaN(value) ? "–" : `${Math.round(value)} ms`;
var Latency = class {
	#stats = null;
	#network = null;
	clear() {
		this.#stats = this.#network = null;
		$("brief").textContent = "starts with the call";
	}
	showStats(stats) {
		this.#stats = stats;
		this.#show();
	}
	showNetwork(network) {
		this.#network = network;
		this.#show();
	}
	#show() {
		const [stats, network] = [this.#stats, this.#network];
		$("rtt").textContent = ms(network?.rttMs);
		if (!stats) return;
		$("model-p50").textContent = ms(stats.model_latency_ms.p50);
		$("model-p95").textContent = ms(stats.model_latency_ms.p95);
		$("event-p50").textContent = ms(stats.event_latency_ms.p50);
		$("event-p95").textContent = ms(stats.event_latency_ms.p95);
		const total = stats.event_latency_ms.p50 + (network?.rttMs ?? NaN) + stats.playout_ms + (network?.audioBufferMs ?? 0);
		$("total").textContent = ms(total);
		$("brief").textContent = `mouth to ear ${ms(total)} · ${stats.deadline_misses} late`;
		showStages(stats.stage_ms);
		const facts = [
			`${stats.deadline_misses} of ${stats.units} units missed their deadline`,
			`${stats.held} held`,
			`${stats.late * 20} ms bridged`,
			`backlog ${stats.backlog}`
		];
		if (network) facts.push(`${network.fps} fps`, `browser buffers: audio ${ms(network.audioBufferMs)}, video ${ms(network.videoBufferMs)}`, `${network.packetsLost} packets lost`, `over ${network.transport}`);
		$("facts").textContent = facts.join(" · ");
	}
};
function showStages(stages) {
	for (const [name, { p50, p95 }] of Object.entries(stages)) {
		const row = $("stages").querySelector(`[data-stage="${CSS.escape(name)}"]`) ?? addStage(name);
		const width = (value) => `${Math.min(100, value / UNIT_MS * 100)}%`;
		row.querySelector(".p50").style.width = width(p50);
		row.querySelector(".p95").style.width = width(p95);
		row.querySelector("b").textContent = `${p50.toFixed(p50 < 10 ? 1 : 0)} / ${p95.toFixed(p95 < 10 ? 1 : 0)}`;
	}
}
function addStage(name) {
	const row = document.createElement("li");
	row.dataset.stage = name;
	row.innerHTML = "<span></span><div class=\"bar-track\"><i class=\"p95\"></i><i class=\"p50\"></i></div><b></b>";
	row.firstElementChild.textContent = name.replace("server: ", "");
	row.classList.toggle("server", name.startsWith("server: "));
	row.style.order = String(STAGE_ORDER[name] ?? 2);
	$("stages").append(row);
	return row;
}
// src/page/recorder.ts
/** Records both sides of a call into one film, the visitor left and the agent right, with both voices. */
var FPS = 25;
var MIX_HZ = 48e3;
var BITS_PER_S = 15e5;
var FORMATS = [
	"video/mp4;codecs=\"avc1.42E01E,mp4a.40.2\"",
	"video/mp4;codecs=\"avc1.42E01E,opus\"",
	"video/webm;codecs=\"vp8,opus\"",
	"video/webm"
];
var Recorder = class {
	#canvas = document.createElement("canvas");
	#audio = new AudioContext({ sampleRate: MIX_HZ });
	#mix = this.#audio.createMediaStreamDestination();
	#recorder;
	#chunks = [];
	#sources = {};
	#left;
	#right;
	#timer;
	#began = performance.now();
	static supported() {
		return "MediaRecorder" in globalThis && FORMATS.some((format) => MediaRecorder.isTypeSupported(format));
	}
	/** left, right: where the two sides are shown; their size is the agent's. */
	constructor(left, right) {
		[this.#left, this.#right] = [left, right];
		this.#canvas.width = 2 * (right.videoWidth || 336);
		this.#canvas.height = right.videoHeight || 192;
		this.#draw();
		const stream = this.#canvas.captureStream(FPS);
		for (const track of this.#mix.stream.getAudioTracks()) stream.addTrack(track);
		const mimeType = FORMATS.find((format) => MediaRecorder.isTypeSupported(format));
		this.#recorder = new MediaRecorder(stream, {
			mimeType,
			videoBitsPerSecond: BITS_PER_S
		});
		this.#recorder.ondataavailable = ({ data }) => this.#chunks.push(data);
		this.#recorder.start(1e3);
		this.#timer = setInterval(() => this.#draw(), 1e3 / FPS);
	}
	get ms() {
		return performance.now() - this.#began;
	}
	/** The sound of a side from now on; the streams may change in a call. */
	listen(side, stream) {
		this.#sources[side]?.disconnect();
		delete this.#sources[side];
		if (!stream?.getAudioTracks().length) return;
		const source = this.#audio.createMediaStreamSource(stream);
		source.connect(this.#mix);
		this.#sources[side] = source;
	}
	#draw() {
		const context = this.#canvas.getContext("2d");
		const [width, height] = [this.#canvas.width / 2, this.#canvas.height];
		context.fillStyle = "#10131c";
		context.fillRect(0, 0, 2 * width, height);
		for (const [x, video] of [[0, this.#left], [width, this.#right]]) {
			if (!video.srcObject || !video.videoWidth) continue;
			const scale = Math.max(width / video.videoWidth, height / video.videoHeight);
			const [w, h] = [width / scale, height / scale];
			context.drawImage(video, (video.videoWidth - w) / 2, (video.videoHeight - h) / 2, w, h, x, 0, width, height);
		}
	}
	stop() {
		clearInterval(this.#timer);
		const ms = this.ms;
		return new Promise((resolve) => {
			this.#recorder.onstop = () => {
				this.#audio.close();
				for (const track of this.#recorder.stream.getTracks()) track.stop();
				const type = this.#recorder.mimeType.split(";")[0];
				resolve({
					blob: new Blob(this.#chunks, { type }),
					extension: type === "video/mp4" ? "mp4" : "webm",
					ms
				});
			};
			this.#recorder.stop();
		});
	}
};
// src/page/recording.ts
var MAX_EVENTS = 1e5;
var Recording = class {
	#recorder = null;
	#timer;
	#events = [];
	#began = 0;
	#streams = {
		left: null,
		right: null
	};
	#urls = [];
	#live = false;
	constructor() {
		$("record").addEventListener("click", () => void (this.#recorder ? this.stop() : this.#start()));
		$("downloads-close").addEventListener("click", () => this.#discard());
	}
	/** live: a picture comes that can be recorded. */
	set live(live) {
		this.#live = live;
		this.#show();
	}
	/** Keeps the messages of the recording; at_ms is the time in the film. */
	log({ from, message }) {
		if (!this.#recorder || this.#events.length >= MAX_EVENTS) return;
		this.#events.push({
			at_ms: Math.round(performance.now() - this.#began),
			from,
			...message
		});
	}
	listen(side, stream) {
		this.#streams[side] = stream;
		this.#recorder?.listen(side, stream);
	}
	#start() {
		this.#discard();
		this.#recorder = new Recorder($("self-video"), $("agent-video"));
		for (const side of ["left", "right"]) this.#recorder.listen(side, this.#streams[side]);
		this.#events = [];
		this.#began = performance.now();
		this.#timer = setInterval(() => this.#showTime(), 500);
		this.#showTime();
		this.#show();
		announce("Recording both sides.");
	}
	async stop() {
		const recorder = this.#recorder;
		if (!recorder) return;
		this.#recorder = null;
		clearInterval(this.#timer);
		this.#show();
		this.#offer(await recorder.stop());
	}
	#offer(film) {
		const events = new Blob([JSON.stringify(this.#events, null, 1)], { type: "application/json" });
		const size = film.blob.size / 1e6;
		$("downloads-text").textContent = `${clock(film.ms)} · ${film.extension}, ${size.toFixed(size < 10 ? 1 : 0)} MB · only in this page until you save it`;
		for (const [id, blob, extension] of [[
			"download-video",
			film.blob,
			film.extension
		], [
			"download-events",
			events,
			"json"
		]]) {
			const url = URL.createObjectURL(blob);
			this.#urls.push(url);
			Object.assign($(id), {
				href: url,
				download: fileName("call", extension)
			});
		}
		$("downloads").hidden = false;
		announce("The recording can be downloaded.");
	}
	#discard() {
		for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
		$("downloads").hidden = true;
	}
	#showTime() {
		$("recording-time").textContent = clock(this.#recorder?.ms ?? 0);
	}
	#show() {
		const running = this.#recorder !== null;
		const button = $("record");
		button.disabled = !running && !(this.#live && Recorder.supported());
		button.setAttribute("aria-pressed", String(running));
		$("record-text").textContent = running ? "Stop" : "Record";
		$("recording").hidden = !running;
	}
};
// src/page/theme.ts
/** Dark or light: as the system has it until the visitor says otherwise. */
var root = document.documentElement;
function toggle() {
	const theme = (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches) ? "light" : "dark";
	localStorage.setItem("theme", theme);
	root.dataset.theme = theme;
}
function followTheme() {
	const theme = localStorage.getItem("theme");
	if (theme) root.dataset.theme = theme;
	$("theme").addEventListener("click", toggle);
}
// src/page/main.ts
var BASE = new URL(".", document.baseURI);
var STATUS = {
	idle: "Ready",
	connecting: "Connecting",
	waiting: "Waiting",
	live: "Live",
	recovering: "Restarting",
	reconnecting: "Reconnecting",
	ended: "Call ended"
};
var INSTEAD = "Type instead";
followTheme();
var devices = new Devices();
var captions = new Captions();
var latency = new Latency();
var recording = new Recording();
var welcome = {
	title: $("poster-title").textContent,
	text: $("poster-text").textContent
};
var call = null;
var isOpen = false;
var about = null;
var toSay = "";
var given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
	sessionStorage.setItem("token", given);
	history.replaceState(null, "", location.pathname + location.search);
}
var token = () => sessionStorage.getItem("token") ?? "";
/** `?transport=NAME` allows one way only: for tests, and to find out what a network lets through. */
function transports() {
	const name = new URLSearchParams(location.search).get("transport");
	return name ? TRANSPORTS.filter((kind) => kind.name === name) : TRANSPORTS;
}
function setState(state, message = "") {
	document.body.dataset.state = state;
	$("status-text").textContent = message || STATUS[state];
	isOpen = state === "live" || state === "recovering";
	const entering = state === "connecting" || state === "waiting" || state === "reconnecting";
	const [start, stop] = [$("start"), $("stop")];
	stop.disabled = !(isOpen || entering);
	start.disabled = isOpen || entering;
	start.textContent = entering ? STATUS[state] : state === "ended" ? "Call again" : "Start call";
	for (const id of ["text", "send"]) $(id).disabled = !isOpen;
	$("poster-title").textContent = state === "ended" ? "The call has ended" : welcome.title;
	$("poster-text").textContent = entering ? message : state === "ended" ? "You can start another one at any time." : welcome.text;
	recording.live = isOpen;
}
/** Keyboards go on where something is to be done: a button that has vanished leaves them nowhere. */
function keepFocus(to) {
	const focused = document.activeElement;
	if (focused === document.body || focused === $("start") || focused === $("stop")) $(to).focus({ preventScroll: true });
}
async function start({ resume = "", typingOnly = false } = {}) {
	if (call) return;
	hideAlert();
	captions.clear();
	latency.clear();
	if (typingOnly) for (const name of ["microphone", "camera"]) devices.setOn(name, false);
	const current = call = devices.call = new Call();
	listen(current);
	try {
		await current.start({
			base: BASE,
			token: token(),
			resume,
			transports: transports(),
			microphone: devices.isOn("microphone"),
			camera: devices.isOn("camera"),
			microphoneId: devices.chosen("microphone"),
			cameraId: devices.chosen("camera")
		});
		await devices.list();
	} catch (error) {
		if (call !== current) return;
		const known = error instanceof CallError ? error : new CallError("The call could not start", String(error));
		leaveCall();
		current.stop();
		setState("idle", "Not connected");
		keepFocus("start");
		const canType = known.code === "devices" || known.code === "insecure";
		showError(known.title, canType ? `${known.message} Or start without a microphone.` : known.message, canType ? {
			label: INSTEAD,
			run: () => void start({ typingOnly: true })
		} : void 0);
		if (known.code === "devices") for (const name of ["microphone", "camera"]) devices.setOn(name, true);
	}
}
function leaveCall() {
	call = devices.call = null;
	toSay = "";
	recording.stop();
	for (const side of ["left", "right"]) recording.listen(side, null);
	devices.showLocal(null);
	$("agent-video").srcObject = null;
	captions.subtitle("");
}
function listen(current) {
	const mine = (handler) => (detail) => call === current && handler(detail);
	current.on("state", mine(showState));
	current.on("device", mine((state) => devices.show(state)));
	current.on("local", mine((stream) => {
		devices.showLocal(stream);
		recording.listen("left", stream);
	}));
	current.on("remote", mine((stream) => {
		const video = $("agent-video");
		if (video.srcObject !== stream) video.srcObject = stream;
		recording.listen("right", stream);
	}));
	current.on("caption", mine((event) => captions.add(event)));
	current.on("turn", mine(({ lane, text }) => captions.ended(lane, text)));
	current.on("notice", mine(({ message }) => showNotice(message)));
	current.on("error", mine(({ message }) => showError("The agent did not get that", message)));
	current.on("stats", mine((stats) => latency.showStats(stats)));
	current.on("network", mine((network) => latency.showNetwork(network)));
	current.on("message", mine((message) => recording.log(message)));
}
function showState(state) {
	if (state.state === "ended") {
		leaveCall();
		setState("ended", state.failed ? "Call ended" : state.message);
		keepFocus("start");
		if (state.failed) showError("The call ended", state.message);
		return;
	}
	const before = document.body.dataset.state;
	setState(state.state, state.state === "live" ? "" : state.message);
	if (state.state !== "live") return;
	if (before !== "recovering") captions.connected();
	keepFocus("toggle-microphone");
	showAgent(state.session.agent);
	if (!about) learnAbout();
	const text = toSay;
	toSay = "";
	if (text) say(text);
}
function showAgent(name) {
	$("agent-name").textContent = about?.name || name;
	captions.agent = about?.name || name;
}
/** One line on what the agent understands, and things to click that say it. */
async function learnAbout() {
	about = await askAbout(BASE, token());
	if (!about) return;
	showAgent(about.name);
	$("about-text").textContent = about.about;
	$("examples").replaceChildren(...about.examples.map((text) => {
		const button = Object.assign(document.createElement("button"), {
			type: "button",
			className: "chip",
			textContent: text
		});
		button.addEventListener("click", () => sayOrCall(text));
		const item = document.createElement("li");
		item.append(button);
		return item;
	}));
	$("about").hidden = false;
}
function sayOrCall(text) {
	if (say(text)) return;
	toSay = text;
	start();
}
function say(text) {
	if (!isOpen || !call?.say(text)) return false;
	captions.typed(text);
	return true;
}
$("compose").addEventListener("submit", (event) => {
	event.preventDefault();
	const input = $("text");
	const text = input.value.trim();
	if (text && say(text)) input.value = "";
});
$("start").addEventListener("click", () => void start());
$("stop").addEventListener("click", () => call?.stop());
$("alert-close").addEventListener("click", hideAlert);
addEventListener("pagehide", () => {
	const kept = call?.leave();
	if (!kept) return;
	const on = {
		microphone: devices.isOn("microphone"),
		camera: devices.isOn("camera")
	};
	sessionStorage.setItem("resume", JSON.stringify({
		...kept,
		...on
	}));
});
addEventListener("pageshow", () => {
	const stored = sessionStorage.getItem("resume");
	sessionStorage.removeItem("resume");
	if (!stored) return;
	const kept = JSON.parse(stored);
	if (Date.now() > kept.until) return;
	for (const name of ["microphone", "camera"]) devices.setOn(name, kept[name]);
	start({ resume: kept.token });
});
document.addEventListener("visibilitychange", () => {
	const video = $("agent-video");
	if (!document.hidden && video.srcObject && video.paused) video.play().catch(() => {});
});
learnAbout();
if (!window.isSecureContext) showError("This page cannot use a microphone", "Browsers allow it only on https:// or on localhost.", {
	label: INSTEAD,
	run: () => void start({ typingOnly: true })
});
