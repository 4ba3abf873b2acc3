// One call: devices, WebRTC, the data channel. No page elements here; app.js listens to its events.
//
// Events (CustomEvent.detail):
//   state    {state: "connecting" | "waiting" | "live" | "recovering" | "reconnecting" | "ended", message, agent}
//   local    MediaStream of the visitor        remote   MediaStream of the agent
//   caption  {lane: "response" | "transcript", unit, text}
//   stats    once a second, from the server    network  {rtt, fps, audioBuffer, videoBuffer, lost}
//   notice   {message}                         error    {message}: what the page sent was not taken

const PING_MS = 1000;
const GATHERING_MS = 1500;
const RETRY_MS = 1000;
const RETRIES = 5;
const DISCONNECTED_MS = 3000; // so long the browser may find another way by itself
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

const offline = () =>
  new CallError("The server does not answer", "Check that it is still running, then start again.", "offline");
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
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
  #session = null; // the server's name for this call, or the ticket of the line
  #timer = null;
  #senders = {};
  #tracks = {};
  #wanted = { microphone: true, camera: true };
  #rtt = null;
  #heard = 0; // when; 0: never
  #resume = null; // {token, ms}: with which to go on, and how long after a drop
  #lostAt = 0; // 0: connected
  #previous = {};
  #ended = false;
  #leaving = new AbortController();
  #authorization = {};

  // options: {microphone, camera}: wanted or not; {microphoneId, cameraId}: which ones; {token}: what the server asks for;
  // {resume}: the token of the conversation to go on with
  async start(options) {
    if (!window.isSecureContext || !navigator.mediaDevices) {
      throw new CallError("This page cannot use a microphone",
        "Browsers allow it only on https:// or on localhost. Open the page in one of these ways.", "insecure");
    }
    if (options.token) this.#authorization = { Authorization: `Bearer ${options.token}` };
    if (options.resume) this.#resume = { token: options.resume, ms: 0 };
    this.#emit("state", { state: "connecting", message: "Asking for microphone and camera" });
    this.#wanted = { microphone: options.microphone, camera: options.camera };
    await this.#openDevices(options);
    if (this.#ended) return;
    this.#emit("local", new MediaStream(Object.values(this.#tracks)));
    await this.#enter();
  }

  // Connects as soon as there is a place.
  async #enter() {
    let ticket = "";
    do {
      if (!this.#lostAt) this.#emit("state", { state: "connecting", message: "Connecting" });
      ticket = await this.#connect(ticket);
    } while (ticket && await this.#wait(ticket));
  }

  // Waits in line. Returns false if the visitor goes away.
  async #wait(ticket) {
    for (let failures = 0; !this.#ended; ) {
      // the server holds its answer: timers of a page in the background are slow
      const options = { headers: { Authorization: `Bearer ${ticket}` }, signal: this.#leaving.signal };
      const response = await fetch("api/queue", options).catch(() => null);
      if (response?.status === 404) return true; // forgotten: to the end of the line
      if (response?.ok) {
        const place = await response.json();
        if (place.ready) return !this.#ended;
        failures = 0;
        this.#showPlace(place);
      } else if (++failures > RETRIES) {
        throw offline();
      } else {
        await sleep(RETRY_MS);
      }
    }
    return false;
  }

  #showPlace({ place, estimate_s }) {
    const minutes = Math.round(estimate_s / 60);
    const time = estimate_s == null ? "" : minutes < 1 ? ", less than a minute" : `, about ${minutes} minute${minutes > 1 ? "s" : ""}`;
    if (!this.#ended) this.#emit("state", { state: "waiting", message: `You are number ${place} in line${time}` });
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

  // Makes an offer. Returns the ticket with which to wait if there is no place.
  async #connect(ticket) {
    const pc = (this.#pc = new RTCPeerConnection({ iceServers: [] }));
    const remote = new MediaStream();
    pc.ontrack = ({ track }) => {
      remote.addTrack(track);
      this.#emit("remote", remote);
    };
    pc.onconnectionstatechange = async () => {
      if (pc.connectionState === "disconnected") await sleep(DISCONNECTED_MS);
      if (["failed", "disconnected"].includes(pc.connectionState)) this.#lost(pc);
    };
    this.#senders.microphone = pc.addTransceiver(this.#tracks.microphone ?? "audio", { direction: "sendrecv" }).sender;
    const video = pc.addTransceiver(this.#tracks.camera ?? "video", { direction: "sendrecv" });
    this.#senders.camera = video.sender;
    preferVp8(video);
    const channel = (this.#channel = pc.createDataChannel("events"));
    channel.onopen = () => this.#opened();
    channel.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    channel.onclose = () => this.#lost(pc);

    await pc.setLocalDescription(await pc.createOffer());
    await gathered(pc);
    if (this.#ended) return "";
    const answer = await this.#offer({ ...pc.localDescription.toJSON(), queue: ticket, resume: this.#resume?.token ?? "" });
    this.#session = answer.session ?? answer.queue;
    if (answer.resume) this.#resume = { token: answer.resume, ms: answer.resume_s * 1000 };
    if (this.#ended) {
      this.#sayGoodbye();
    } else if (answer.queue) {
      this.#disconnect();
      this.#showPlace(answer);
      return answer.queue;
    } else {
      await pc.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    }
    return "";
  }

  async #offer(offer) {
    let response;
    try {
      response = await fetch("api/offer", {
        method: "POST", headers: { "Content-Type": "application/json", ...this.#authorization }, body: JSON.stringify(offer),
      });
    } catch {
      throw offline();
    }
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    const titles = { busy: "Too many visitors wait", model: "The agent cannot start", token: "The agent asks for a token" };
    throw new CallError(titles[body.error] ?? "The server refused the call",
      body.message ?? `It answered with status ${response.status}.`, body.error);
  }

  #opened() {
    this.#heard = performance.now();
    this.#lostAt = 0;
    this.#announceDevices();
    this.#timer = setInterval(() => this.#tick(), PING_MS);
    this.#tick();
  }

  async #tick() {
    if (performance.now() - this.#heard > SILENCE_MS) return this.#lost();
    this.#send({ type: "ping", t: performance.now() });
    const pc = this.#pc;
    const report = await pc.getStats();
    if (pc === this.#pc) this.#emit("network", this.#summarise(report));
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
      if (event.state === "ended") this.#fail(event.message);
      else if (event.state === "busy") this.#again();
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

  // Another visitor was faster: there is no conversation yet.
  async #again() {
    this.#disconnect();
    [this.#resume, this.#heard] = [null, 0];
    try {
      await this.#enter();
    } catch (error) {
      this.#fail(error.message);
    }
  }

  // The connection `pc` is lost: goes on with the conversation over another one, as long as the server waits for that.
  async #lost(pc = this.#pc) {
    if (this.#ended || pc !== this.#pc) return;
    this.#disconnect();
    this.#lostAt ||= performance.now();
    const expired = () => performance.now() - this.#lostAt > this.#resume.ms;
    while (this.#heard && !this.#ended && !expired()) {
      this.#emit("state", { state: "reconnecting" });
      try {
        return await this.#enter();
      } catch {
        this.#disconnect();
        await sleep(RETRY_MS);
      }
    }
    this.#fail("The connection to the server was lost.");
  }

  #fail(message) {
    this.#end({ state: "ended", message, failed: true });
  }

  #disconnect() {
    clearInterval(this.#timer);
    const [channel, pc] = [this.#channel, this.#pc];
    this.#channel = this.#pc = null; // what they report from now on is of no interest
    channel?.close();
    pc?.close();
  }

  // Ends the call; safe at any time and more than once.
  stop() {
    this.#end({ state: "ended", message: "Call ended" });
  }

  // The page goes away, perhaps to be loaded again. Returns what that one needs: {token, until}; null outside a call.
  leave() {
    const inCall = this.#heard && !this.#ended;
    if (inCall) this.#session = null; // no goodbye
    this.stop();
    return inCall ? { token: this.#resume.token, until: Date.now() + this.#resume.ms } : null;
  }

  #end(detail) {
    if (this.#ended) return;
    this.#ended = true;
    this.#leaving.abort();
    this.#stopTracks();
    this.#disconnect();
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
