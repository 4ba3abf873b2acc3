// One call: devices, WebRTC, the data channel. No page elements here; app.js listens to its events.
//
// Events (CustomEvent.detail):
//   state    {state: "connecting" | "live" | "recovering" | "ended", message, agent}
//   local    MediaStream of the visitor        remote   MediaStream of the agent
//   caption  {lane: "response" | "transcript", unit, text}
//   stats    once a second, from the server    network  {rtt, fps, audioBuffer, videoBuffer, lost}
//   notice   {message}                         error    {message}: what the page sent was not taken

const PING_MS = 1000;
const GATHERING_MS = 1500;
const SILENCE_MS = 8000; // no pong for this long: the connection is lost
const CAMERA = { width: { ideal: 336 }, height: { ideal: 192 }, frameRate: { ideal: 25, max: 30 } };
const MICROPHONE = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: { ideal: 1 } };

// A problem that the visitor can understand. `title` is short, `message` says what to do.
export class CallError extends Error {
  constructor(title, message, code = "error") {
    super(message);
    this.title = title;
    this.code = code;
  }
}

const device = (constraints, id) => (id ? { ...constraints, deviceId: { exact: id } } : constraints);

function deviceError(error, what) {
  if (error.name === "NotAllowedError") {
    return new CallError(`No permission for the ${what}`,
      `Allow the ${what} in the browser's address bar, then start again.`, "permission");
  }
  if (error.name === "NotReadableError") {
    return new CallError(`The ${what} is in use`, "Another program uses it. Close that program, then start again.", "device");
  }
  return new CallError(`No ${what} found`, "Plug one in or choose another device.", "device");
}

// Asks for one kind of device. Returns its track.
async function openDevice(kind, id) {
  const constraints = kind === "audio" ? { audio: device(MICROPHONE, id) } : { video: device(CAMERA, id) };
  const stream = await navigator.mediaDevices.getUserMedia(constraints);
  return stream.getTracks()[0];
}

export class Call extends EventTarget {
  #pc = null;
  #channel = null;
  #session = null;
  #timer = null;
  #senders = {};
  #tracks = {};
  #wanted = { microphone: true, camera: true };
  #rtt = null;
  #heard = 0;
  #previous = {};
  #ended = false;
  #authorization = {};

  // options: {microphone, camera}: wanted or not; {microphoneId, cameraId}: which ones; {token}: what the server asks for
  async start(options) {
    if (!window.isSecureContext || !navigator.mediaDevices) {
      throw new CallError("This page cannot use a microphone",
        "Browsers allow it only on https:// or on localhost. Open the page in one of these ways.", "insecure");
    }
    if (options.token) this.#authorization = { Authorization: `Bearer ${options.token}` };
    this.#emit("state", { state: "connecting", message: "Asking for microphone and camera" });
    this.#wanted = { microphone: options.microphone, camera: options.camera };
    await this.#openDevices(options);
    if (this.#ended) return;
    this.#emit("local", new MediaStream(Object.values(this.#tracks)));
    this.#emit("state", { state: "connecting", message: "Connecting" });
    await this.#connect();
  }

  async #openDevices({ microphoneId, cameraId }) {
    const kinds = [["microphone", "audio", microphoneId], ["camera", "video", cameraId]]
      .filter(([name]) => this.#wanted[name]);
    const problems = [];
    for (const [name, kind, id] of kinds) {
      try {
        this.#tracks[name] = await openDevice(kind, id);
      } catch (error) {
        problems.push(deviceError(error, name));
      }
      if (this.#ended) return this.#stopTracks();
    }
    if (kinds.length > 0 && problems.length === kinds.length) throw problems[0];
    for (const problem of problems) this.#emit("notice", { message: `${problem.title}. The call goes on without it.` });
  }

  async #connect() {
    const pc = (this.#pc = new RTCPeerConnection({ iceServers: [] }));
    const remote = new MediaStream();
    pc.ontrack = ({ track }) => {
      remote.addTrack(track);
      this.#emit("remote", remote);
    };
    pc.onconnectionstatechange = () => {
      if (pc.connectionState === "failed") this.#lost();
    };
    this.#senders.microphone = pc.addTransceiver(this.#tracks.microphone ?? "audio", { direction: "sendrecv" }).sender;
    const video = pc.addTransceiver(this.#tracks.camera ?? "video", { direction: "sendrecv" });
    this.#senders.camera = video.sender;
    preferVp8(video);
    this.#channel = pc.createDataChannel("events");
    this.#channel.onopen = () => this.#opened();
    this.#channel.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#channel.onclose = () => this.#lost();

    await pc.setLocalDescription(await pc.createOffer());
    await gathered(pc);
    if (this.#ended) return;
    const answer = await this.#offer(pc.localDescription);
    this.#session = answer.session;
    if (this.#ended) return this.#sayGoodbye();
    await pc.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
  }

  async #offer({ sdp, type }) {
    let response;
    try {
      response = await fetch("api/offer", {
        method: "POST", headers: { "Content-Type": "application/json", ...this.#authorization }, body: JSON.stringify({ sdp, type }),
      });
    } catch {
      throw new CallError("The server does not answer", "Check that it is still running, then start again.", "offline");
    }
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    const titles = { busy: "The agent is in another call", model: "The agent cannot start", token: "The agent asks for a token" };
    throw new CallError(titles[body.error] ?? "The server refused the call",
      body.message ?? `It answered with status ${response.status}.`, body.error);
  }

  #opened() {
    this.#heard = performance.now();
    this.#announceDevices();
    this.#timer = setInterval(() => this.#tick(), PING_MS);
    this.#tick();
  }

  async #tick() {
    if (performance.now() - this.#heard > SILENCE_MS) return this.#lost();
    this.#send({ type: "ping", t: performance.now() });
    const report = await this.#pc.getStats();
    if (!this.#ended) this.#emit("network", this.#summarise(report));
  }

  // Buffers are averages over the last second: difference of total delay by difference of items.
  #summarise(report) {
    const network = { rtt: this.#rtt, fps: 0, audioBuffer: null, videoBuffer: null, lost: 0 };
    report.forEach((stat) => {
      if (stat.type !== "inbound-rtp") return;
      const before = this.#previous[stat.kind] ?? { jitterBufferDelay: 0, jitterBufferEmittedCount: 0 };
      const items = stat.jitterBufferEmittedCount - before.jitterBufferEmittedCount;
      const buffer = items > 0 ? ((stat.jitterBufferDelay - before.jitterBufferDelay) / items) * 1000 : null;
      network[`${stat.kind}Buffer`] = buffer;
      network.lost += stat.packetsLost ?? 0;
      if (stat.kind === "video") network.fps = stat.framesPerSecond ?? 0;
      this.#previous[stat.kind] = stat;
    });
    return network;
  }

  #receive(event) {
    this.#heard = performance.now();
    if (event.type === "pong") {
      this.#rtt = performance.now() - event.t;
    } else if (event.type === "session") {
      if (event.state === "ended") this.#end({ state: "ended", message: event.message, failed: true });
      else this.#emit("state", event);
    } else {
      this.#emit(event.type, event);
    }
  }

  // Types a message to the agent. Returns false if the call is not open.
  say(text) {
    return this.#send({ type: "text", text });
  }

  // Switches a device ("microphone" or "camera") on or off during the call, or to another one.
  async setDevice(name, on, id) {
    this.#wanted[name] = on;
    const old = this.#tracks[name];
    let track = null;
    if (on) {
      try {
        track = await openDevice(name === "microphone" ? "audio" : "video", id);
      } catch (error) {
        throw deviceError(error, name);
      }
    }
    if (this.#ended) return track?.stop();
    if (track) this.#tracks[name] = track;
    else delete this.#tracks[name];
    await this.#senders[name]?.replaceTrack(track);
    old?.stop();
    this.#announceDevices();
    this.#emit("local", new MediaStream(Object.values(this.#tracks)));
  }

  #announceDevices() {
    this.#send({ type: "devices", microphone: "microphone" in this.#tracks, camera: "camera" in this.#tracks });
  }

  #send(message) {
    if (this.#channel?.readyState !== "open") return false;
    this.#channel.send(JSON.stringify(message));
    return true;
  }

  #lost() {
    this.#end({ state: "ended", message: "The connection to the server was lost.", failed: true });
  }

  // Ends the call; safe at any time and more than once.
  stop() {
    this.#end({ state: "ended", message: "Call ended" });
  }

  #end(detail) {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#timer);
    this.#stopTracks();
    this.#channel?.close();
    this.#pc?.close();
    this.#sayGoodbye();
    this.#emit("state", detail);
  }

  #stopTracks() {
    for (const track of Object.values(this.#tracks)) track.stop();
  }

  #sayGoodbye() {
    if (!this.#session) return;
    const body = new Blob([JSON.stringify({ session: this.#session })], { type: "application/json" });
    navigator.sendBeacon("api/close", body);
    this.#session = null;
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

// VP8 costs the server a quarter of what H264 does. The order counts only in the browser's own offer.
function preferVp8(transceiver) {
  const codecs = RTCRtpReceiver.getCapabilities?.("video")?.codecs ?? [];
  const first = codecs.filter(({ mimeType }) => mimeType === "video/VP8");
  if (first.length > 0 && transceiver.setCodecPreferences) {
    transceiver.setCodecPreferences([...first, ...codecs.filter((codec) => !first.includes(codec))]);
  }
}

// The offer carries all candidates, because the server takes none later.
function gathered(pc) {
  return new Promise((resolve) => {
    const done = () => pc.iceGatheringState === "complete" && resolve();
    pc.addEventListener("icegatheringstatechange", done);
    setTimeout(resolve, GATHERING_MS);
    done();
  });
}
