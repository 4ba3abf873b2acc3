/** The button that records, and what can be downloaded then. */

import type { CallEvents } from "../client";
import { $, announce, clock, fileName } from "./dom";
import { type Film, Recorder } from "./recorder";

const MAX_EVENTS = 100_000; // hours of a call

interface Logged {
  at_ms: number;
  from: "server" | "page";
  [field: string]: unknown;
}

export class Recording {
  #recorder: Recorder | null = null;
  #timer: ReturnType<typeof setInterval> | undefined;
  #events: Logged[] = [];
  #began = 0;
  #streams: { left: MediaStream | null; right: MediaStream | null } = { left: null, right: null };
  #urls: string[] = [];
  #live = false;

  constructor() {
    $("record").addEventListener("click", () => void (this.#recorder ? this.stop() : this.#start()));
    $("downloads-close").addEventListener("click", () => this.#discard());
  }

  /** live: a picture comes that can be recorded. */
  set live(live: boolean) {
    this.#live = live;
    this.#show();
  }

  /** Keeps the messages of the recording; at_ms is the time in the film. */
  log({ from, message }: CallEvents["message"]): void {
    if (!this.#recorder || this.#events.length >= MAX_EVENTS) return;
    this.#events.push({ at_ms: Math.round(performance.now() - this.#began), from, ...message });
  }

  listen(side: "left" | "right", stream: MediaStream | null): void {
    this.#streams[side] = stream;
    this.#recorder?.listen(side, stream);
  }

  #start(): void {
    this.#discard();
    this.#recorder = new Recorder($<HTMLVideoElement>("self-video"), $<HTMLVideoElement>("agent-video"));
    for (const side of ["left", "right"] as const) this.#recorder.listen(side, this.#streams[side]);
    this.#events = [];
    this.#began = performance.now();
    this.#timer = setInterval(() => this.#showTime(), 500);
    this.#showTime();
    this.#show();
    announce("Recording both sides.");
  }

  async stop(): Promise<void> {
    const recorder = this.#recorder;
    if (!recorder) return;
    this.#recorder = null;
    clearInterval(this.#timer);
    this.#show();
    this.#offer(await recorder.stop());
  }

  #offer(film: Film): void {
    const events = new Blob([JSON.stringify(this.#events, null, 1)], { type: "application/json" });
    const size = film.blob.size / 1e6;
    $("downloads-text").textContent = `${clock(film.ms)} · ${film.extension}, ${size.toFixed(size < 10 ? 1 : 0)} MB · only in this page until you save it`;
    for (const [id, blob, extension] of [["download-video", film.blob, film.extension], ["download-events", events, "json"]] as const) {
      const url = URL.createObjectURL(blob);
      this.#urls.push(url);
      Object.assign($(id), { href: url, download: fileName("call", extension) });
    }
    $("downloads").hidden = false;
    announce("The recording can be downloaded.");
  }

  #discard(): void {
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
    $("downloads").hidden = true;
  }

  #showTime(): void {
    $("recording-time").textContent = clock(this.#recorder?.ms ?? 0);
  }

  #show(): void {
    const running = this.#recorder !== null;
    const button = $<HTMLButtonElement>("record");
    button.disabled = !running && !(this.#live && Recorder.supported());
    button.setAttribute("aria-pressed", String(running));
    $("record-text").textContent = running ? "Stop" : "Record";
    $("recording").hidden = !running;
  }
}
