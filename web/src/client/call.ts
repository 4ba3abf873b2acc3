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

import { DEVICE_NAMES, openDevice } from "./devices";
import { CallError, offline, unreachable } from "./errors";
import type { PageMessage, ServerEvent } from "./events";
import { Emitter } from "./emitter";
import { askLine, sayGoodbye } from "./server";
import { socket } from "./socket";
import type { CallEvents, CallOptions, CallState, Why } from "./state";
import type { DeviceName, Entry, Resume, Tracks, Transport, TransportKind } from "./transport";
import { webrtc } from "./webrtc";

const PING_MS = 1000;
const RETRY_MS = 1000;
const RETRIES = 5;
const SILENCE_MS = 8000; // nothing from the server for this long: the connection is lost
const ASLEEP_MS = 4000; // a timer this late: the page, not the network, was away

/** In the order in which a call tries them. */
export const TRANSPORTS: readonly TransportKind[] = [webrtc, socket];

export class Call extends Emitter<CallEvents> {
  #options!: CallOptions;
  #transport: Transport | null = null;
  #kind = ""; // name of the transport
  #ticket = ""; // of the place in the line
  #timer: ReturnType<typeof setInterval> | undefined;
  #tracks: Tracks = {};
  #rtt: number | null = null;
  #ticked = 0;
  #heard = 0; // when; 0: never
  #resume: Resume | null = null;
  #lostAt = 0; // 0: connected
  #ended = false;
  readonly #leaving = new AbortController();

  /** Opens the devices and connects as soon as there is a place. Raises `CallError`; code "devices": none could be opened. */
  async start(options: CallOptions): Promise<void> {
    this.#options = options;
    if (!globalThis.isSecureContext || !navigator.mediaDevices) {
      throw new CallError("This page cannot use a microphone",
        "Browsers allow it only on https:// or on localhost. Open the page in one of these ways.", "insecure");
    }
    if (options.resume) this.#resume = { token: options.resume, ms: 0 };
    await this.#openDevices();
    if (this.#ended) return;
    this.#tellLocal();
    await this.#enter();
  }

  async #openDevices(): Promise<void> {
    const { microphone = true, camera = true } = this.#options;
    const wanted = DEVICE_NAMES.filter((device) => ({ microphone, camera })[device]);
    if (wanted.length > 0) this.#emitState({ state: "connecting", message: `Asking for ${wanted.join(" and ")}` });
    const problems: CallError[] = [];
    for (const device of wanted) {
      try {
        this.#adopt(device, await openDevice(device, this.#options[`${device}Id`] ?? ""));
      } catch (error) {
        const problem = error as CallError;
        problems.push(problem);
        this.emit("device", { device, state: "problem", problem });
      }
      if (this.#ended) return this.#stopTracks();
    }
    const [first] = problems;
    if (first && problems.length === wanted.length) throw new CallError(first.title, first.message, "devices");
  }

  /** Connects as soon as there is a place. */
  async #enter(): Promise<void> {
    do {
      if (!this.#lostAt) this.#emitState({ state: "connecting", message: "Connecting" });
      const entry = await this.#open();
      if (entry.kind === "open") return this.#opened();
      this.#ticket = entry.ticket;
      if (this.#ended) return this.#leaveLine();
      this.#showPlace(entry.place, entry.estimateS);
    } while (await this.#wait());
  }

  /** Tries one transport after the other. */
  async #open(): Promise<Entry> {
    let problem = unreachable();
    for (const kind of this.#options.transports ?? TRANSPORTS) {
      if (!kind.supported()) continue;
      const transport = (this.#transport = kind.create());
      this.#kind = kind.name;
      const { base, token = "" } = this.#options;
      const before = this.#resume;
      try {
        const request = { base, token, queue: this.#ticket, resume: before?.token ?? "" };
        return await transport.open(request, this.#tracks, {
          resume: (next) => transport === this.#transport && (this.#resume = next),
          message: (event) => transport === this.#transport && this.#receive(event),
          remote: (stream) => transport === this.#transport && this.emit("remote", stream),
          lost: () => transport === this.#transport && void this.#lost("lost"),
        });
      } catch (error) {
        if (this.#ended || !(error instanceof CallError) || error.code !== "unreachable") throw error;
        problem = error;
        transport.close(!before); // a goodbye would end the conversation that is gone on with
        if (!before) this.#resume = null;
      }
    }
    throw problem;
  }

  #opened(): void {
    if (this.#ended) return;
    this.#ticket = "";
    this.#heard = this.#ticked = performance.now();
    this.#lostAt = 0;
    this.#tellDevices();
    this.#timer = setInterval(() => void this.#tick(), PING_MS);
    void this.#tick();
  }

  /** Waits in line. Returns false if the visitor goes away. */
  async #wait(): Promise<boolean> {
    for (let failures = 0; !this.#ended; ) {
      try {
        // the server holds its answer: timers of a page in the background are slow
        const turn = await askLine(this.#options.base, this.#ticket, this.#leaving.signal);
        if (turn === "gone") this.#ticket = ""; // to the end of the line
        if (turn === "gone" || turn === "ready") return !this.#ended;
        failures = 0;
        this.#showPlace(turn.place, turn.estimate_s);
      } catch {
        if (++failures > RETRIES) throw offline();
        await this.#pause();
      }
    }
    return false;
  }

  #showPlace(place: number, estimateS: number | null): void {
    const minutes = Math.round((estimateS ?? 0) / 60);
    const about = minutes < 1 ? "less than a minute" : `about ${minutes} minute${minutes > 1 ? "s" : ""}`;
    const message = `You are number ${place} in line${estimateS === null ? "" : `, ${about}`}`;
    if (!this.#ended) this.#emitState({ state: "waiting", message, place, estimateS });
  }

  async #tick(): Promise<void> {
    const [now, late] = [performance.now(), performance.now() - this.#ticked - PING_MS];
    this.#ticked = now;
    if (now - this.#heard > SILENCE_MS) {
      if (late < ASLEEP_MS) return this.#lost("lost");
      this.#heard = now - SILENCE_MS + ASLEEP_MS; // what came meanwhile is delivered now
    }
    const transport = this.#transport;
    this.#send({ type: "ping", t: now });
    const network = await transport?.network().catch(() => null);
    if (network && transport === this.#transport) {
      this.emit("network", { ...network, rttMs: this.#rtt, transport: this.#kind });
    }
  }

  #receive(event: ServerEvent): void {
    this.#heard = performance.now();
    if (event.type === "pong") {
      this.#rtt = performance.now() - event.t;
      return;
    }
    this.emit("message", { from: "server", message: event });
    if (event.type !== "session") this.emit(event.type, event as never);
    else if (event.state === "live") this.#emitState({ state: "live", session: event });
    else if (event.state === "recovering") this.#emitState({ state: "recovering", message: event.message });
    else if (event.state === "ended") this.#fail(event.message);
    else void this.#again();
  }

  /** Types a message to the agent. Returns false if the call is not open. */
  say(text: string): boolean {
    return this.#send({ type: "text", text });
  }

  /** Drops what the agent has still to say of what was computed. */
  clear(): boolean {
    return this.#send({ type: "clear" });
  }

  isOn(device: DeviceName): boolean {
    return device in this.#tracks;
  }

  /** Switches a device on or off during the call, or to another one. Raises `CallError`; the device is off then. */
  async setDevice(device: DeviceName, on: boolean, id = ""): Promise<void> {
    let track: MediaStreamTrack | null = null;
    try {
      if (on) track = await openDevice(device, id);
    } catch (error) {
      await this.#replace(device, null);
      this.emit("device", { device, state: "problem", problem: error as CallError });
      throw error;
    }
    await this.#replace(device, track);
    if (!on) this.emit("device", { device, state: "off" });
  }

  async #replace(device: DeviceName, track: MediaStreamTrack | null): Promise<void> {
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
  #adopt(device: DeviceName, track: MediaStreamTrack): void {
    this.#tracks[device] = track;
    const current = () => this.#tracks[device] === track && !this.#ended;
    track.onended = async () => {
      if (!current()) return;
      await this.#replace(device, null);
      this.emit("device", { device, state: "lost" });
    };
    track.onmute = track.onunmute = () => {
      if (!current()) return;
      this.#tellDevices();
      this.emit("device", { device, state: track.muted ? "silenced" : "on" });
    };
    this.emit("device", { device, state: track.muted ? "silenced" : "on" });
  }

  #tellDevices(): void {
    const sends = (device: DeviceName) => this.#tracks[device]?.muted === false;
    this.#send({ type: "devices", microphone: sends("microphone"), camera: sends("camera") });
  }

  #tellLocal(): void {
    this.emit("local", new MediaStream(Object.values(this.#tracks)));
  }

  #send(message: PageMessage): boolean {
    const sent = this.#transport?.send(message) ?? false;
    if (sent && message.type !== "ping") this.emit("message", { from: "page", message });
    return sent;
  }

  /** Another visitor was faster: there is no conversation yet. */
  async #again(): Promise<void> {
    this.#disconnect(false);
    [this.#resume, this.#heard] = [null, 0];
    try {
      await this.#enter();
    } catch (error) {
      this.#fail((error as Error).message);
    }
  }

  /** The connection is lost: goes on with the conversation over another one, as long as the server waits for that. */
  async #lost(why: Why): Promise<void> {
    if (this.#ended || this.#lostAt) return;
    const asleep = performance.now() - this.#ticked > PING_MS + ASLEEP_MS;
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

  #showLoss(why: Why): void {
    const real = navigator.onLine ? why : "offline";
    const message = {
      offline: "No network: connecting again when it is back",
      asleep: "The page was asleep: connecting again",
      lost: "The connection was lost: connecting again",
    }[real];
    this.#emitState({ state: "reconnecting", message, why: real });
  }

  /** Until it is worth trying again; at once when the network comes back. */
  #pause(): Promise<void> {
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

  #fail(message: string): void {
    this.#end(message, true, true);
  }

  #disconnect(goodbye: boolean): void {
    clearInterval(this.#timer);
    const transport = this.#transport;
    this.#transport = null; // what it reports from now on is of no interest
    transport?.close(goodbye);
  }

  /** Ends the call; safe at any time and more than once. */
  stop(): void {
    this.#end("Call ended", false, true);
  }

  /** The page goes away, perhaps to be loaded again. Returns what that one needs; null outside a call. */
  leave(): { token: string; until: number } | null {
    const kept = this.#heard && !this.#ended ? this.#resume : null;
    this.#end("Call ended", false, !kept);
    return kept && { token: kept.token, until: Date.now() + kept.ms };
  }

  #end(message: string, failed: boolean, goodbye: boolean): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#leaving.abort();
    this.#stopTracks();
    this.#disconnect(goodbye);
    this.#leaveLine();
    this.#emitState({ state: "ended", message, failed });
  }

  #leaveLine(): void {
    if (this.#ticket) sayGoodbye(this.#options.base, this.#ticket);
    this.#ticket = "";
  }

  #stopTracks(): void {
    for (const track of Object.values(this.#tracks)) track.stop();
  }

  #emitState(state: CallState): void {
    this.emit("state", state);
  }
}
