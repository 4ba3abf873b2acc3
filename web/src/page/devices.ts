/** Buttons, keys and pickers of microphone and camera, the level of the microphone, the visitor's own picture. */

import { Call, CallError, DEVICE_NAMES, type DeviceName, type DeviceState, listDevices } from "../client";
import { $, announce } from "./dom";
import { showError, showNotice } from "./notices";

const KEYS: Record<string, DeviceName> = { m: "microphone", v: "camera" };
const WORDS: Record<DeviceName, string> = { microphone: "Microphone", camera: "Camera" };

export class Devices {
  /** That of the page; null outside a call. */
  call: Call | null = null;
  #meter: { close(): void } | null = null;
  #asked = 0; // answers of the browser may overtake each other

  constructor() {
    for (const name of DEVICE_NAMES) {
      $(`toggle-${name}`).addEventListener("click", () => void this.#switch(name, !this.isOn(name)));
      $(name).addEventListener("change", () => this.isOn(name) && void this.#switch(name, true));
    }
    addEventListener("keydown", (event) => this.#key(event));
    navigator.mediaDevices?.addEventListener?.("devicechange", () => void this.#plugged());
    this.showLocal(null);
    void this.list();
  }

  isOn(name: DeviceName): boolean {
    return $(`toggle-${name}`).getAttribute("aria-pressed") === "true";
  }

  setOn(name: DeviceName, on: boolean): void {
    $(`toggle-${name}`).setAttribute("aria-pressed", String(on));
  }

  chosen(name: DeviceName): string {
    return $<HTMLSelectElement>(name).value;
  }

  #key(event: KeyboardEvent): void {
    const name = KEYS[event.key.toLowerCase()];
    const typing = event.target instanceof Element && event.target.closest("input, select, textarea, [contenteditable]");
    if (!name || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    void this.#switch(name, !this.isOn(name));
    announce(`${WORDS[name]} ${this.isOn(name) ? "on" : "off"}`);
  }

  async #switch(name: DeviceName, on: boolean): Promise<void> {
    this.setOn(name, on);
    try {
      await this.call?.setDevice(name, on, this.chosen(name));
    } catch (error) {
      const { title, message } = error as CallError;
      showError(title ?? "The device could not be opened", message);
    }
  }

  /** What a call tells about a device. */
  show({ device, state, problem }: DeviceState): void {
    if (state !== "silenced") this.setOn(device, state === "on");
    $(`toggle-${device}`).classList.toggle("silenced", state === "silenced");
    if (state === "silenced") showNotice(`The system holds the ${device} back`, "The agent knows. It comes back by itself.");
    if (state === "problem" && problem) showNotice(`${problem.title}. The call goes on without it.`, problem.message);
    if (state === "lost") void this.#replace(device);
  }

  /** A device that went away in a call: another one takes its place, if there is one. */
  async #replace(device: DeviceName): Promise<void> {
    await this.list();
    $<HTMLSelectElement>(device).value = "";
    try {
      await this.call?.setDevice(device, true);
      if (this.call) showNotice(`The ${device} went away`, "Another one is used now.");
    } catch {
      showNotice(`The ${device} went away`, "The call goes on without it.");
    }
  }

  async #plugged(): Promise<void> {
    const before = DEVICE_NAMES.map((name) => this.chosen(name));
    await this.list();
    for (const [i, name] of DEVICE_NAMES.entries()) {
      if (before[i] && !this.chosen(name) && this.call?.isOn(name)) await this.#switch(name, true);
    }
  }

  async list(): Promise<void> {
    const asked = ++this.#asked;
    const found = await Promise.all(DEVICE_NAMES.map(listDevices));
    if (asked !== this.#asked) return;
    for (const [i, name] of DEVICE_NAMES.entries()) {
      const [select, choices] = [$<HTMLSelectElement>(name), found[i]!];
      const chosen = select.value;
      select.replaceChildren(new Option(`Default ${name}`, ""), ...choices.map(({ id, label }) => new Option(label, id)));
      select.value = choices.some(({ id }) => id === chosen) ? chosen : "";
    }
  }

  showLocal(stream: MediaStream | null): void {
    const video = stream?.getVideoTracks().length ? stream : null;
    $<HTMLVideoElement>("self-video").srcObject = video;
    $("stage").classList.toggle("with-self", video !== null);
    this.#meter?.close();
    this.#meter = stream?.getAudioTracks().length ? showLevel(stream) : null;
    const sound = stream?.getAudioTracks()[0];
    const cancels = sound?.getSettings().echoCancellation !== false;
    $("hint").textContent = !sound
      ? "A headset gives the best sound."
      : cancels
        ? "Echo cancellation is on. A headset gives the best sound."
        : "This browser cancels no echo: use a headset, or the agent hears itself.";
  }
}

/** A level bar, so that a visitor sees whether the microphone works. */
function showLevel(stream: MediaStream): { close(): void } {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 512 });
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const show = (level: number) => ($("level").style.transform = `scaleX(${level})`);
  const timer = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    const rms = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
    show(Math.min(1, Math.sqrt(rms) * 1.6));
  }, 100);
  return {
    close() {
      clearInterval(timer);
      void context.close();
      show(0);
    },
  };
}
