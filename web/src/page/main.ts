/** The page: one call at a time, and what is around it. What a call is lives in `client/`. */

import "../style/style.css";
import { type About, askAbout, Call, CallError, type CallState, TRANSPORTS } from "../client";
import { Captions } from "./captions";
import { Devices } from "./devices";
import { $ } from "./dom";
import { Latency } from "./latency";
import { hideAlert, showError, showNotice } from "./notices";
import { Recording } from "./recording";
import { followTheme } from "./theme";

type State = CallState["state"] | "idle";

const BASE = new URL(".", document.baseURI);
const STATUS: Record<State, string> = {
  idle: "Ready", connecting: "Connecting", waiting: "Waiting", live: "Live", recovering: "Restarting",
  reconnecting: "Reconnecting", ended: "Call ended",
};
const INSTEAD = "Type instead";

followTheme();
const devices = new Devices();
const captions = new Captions();
const latency = new Latency();
const recording = new Recording();
const welcome = { title: $("poster-title").textContent, text: $("poster-text").textContent };
let call: Call | null = null;
let isOpen = false; // messages can be sent
let about: About | null = null;
let toSay = ""; // when the call is live

// The token comes behind the #, which is sent to no server, and leaves the address bar and the history at once.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname + location.search);
}
const token = () => sessionStorage.getItem("token") ?? "";

/** `?transport=NAME` allows one way only: for tests, and to find out what a network lets through. */
function transports(): typeof TRANSPORTS {
  const name = new URLSearchParams(location.search).get("transport");
  return name ? TRANSPORTS.filter((kind) => kind.name === name) : TRANSPORTS;
}

// ---------------------------------------------------------------------------------------------------- states

function setState(state: State, message = ""): void {
  document.body.dataset.state = state;
  $("status-text").textContent = message || STATUS[state];
  isOpen = state === "live" || state === "recovering";
  const entering = state === "connecting" || state === "waiting" || state === "reconnecting";
  const [start, stop] = [$<HTMLButtonElement>("start"), $<HTMLButtonElement>("stop")];
  stop.disabled = !(isOpen || entering);
  start.disabled = isOpen || entering;
  start.textContent = entering ? STATUS[state] : state === "ended" ? "Call again" : "Start call";
  for (const id of ["text", "send"]) $<HTMLButtonElement>(id).disabled = !isOpen;
  $("poster-title").textContent = state === "ended" ? "The call has ended" : welcome.title;
  $("poster-text").textContent = entering ? message : state === "ended" ? "You can start another one at any time." : welcome.text;
  recording.live = isOpen;
}

/** Keyboards go on where something is to be done: a button that has vanished leaves them nowhere. */
function keepFocus(to: string): void {
  const focused = document.activeElement;
  if (focused === document.body || focused === $("start") || focused === $("stop")) $(to).focus({ preventScroll: true });
}

interface StartOptions {
  /** The token of a conversation to go on with. */
  resume?: string;
  typingOnly?: boolean;
}

async function start({ resume = "", typingOnly = false }: StartOptions = {}): Promise<void> {
  if (call) return;
  hideAlert();
  captions.clear();
  latency.clear();
  if (typingOnly) for (const name of ["microphone", "camera"] as const) devices.setOn(name, false);
  const current = (call = devices.call = new Call());
  listen(current);
  try {
    await current.start({
      base: BASE, token: token(), resume, transports: transports(),
      microphone: devices.isOn("microphone"), camera: devices.isOn("camera"),
      microphoneId: devices.chosen("microphone"), cameraId: devices.chosen("camera"),
    });
    await devices.list();
  } catch (error) {
    if (call !== current) return; // stopped meanwhile
    const known = error instanceof CallError ? error : new CallError("The call could not start", String(error));
    leaveCall();
    current.stop();
    setState("idle", "Not connected");
    keepFocus("start");
    const canType = known.code === "devices" || known.code === "insecure";
    showError(known.title, canType ? `${known.message} Or start without a microphone.` : known.message,
      canType ? { label: INSTEAD, run: () => void start({ typingOnly: true }) } : undefined);
    if (known.code === "devices") for (const name of ["microphone", "camera"] as const) devices.setOn(name, true);
  }
}

function leaveCall(): void {
  call = devices.call = null;
  toSay = "";
  void recording.stop();
  for (const side of ["left", "right"] as const) recording.listen(side, null);
  devices.showLocal(null);
  $<HTMLVideoElement>("agent-video").srcObject = null;
  captions.subtitle("");
}

function listen(current: Call): void {
  const mine = <Detail>(handler: (detail: Detail) => void) => (detail: Detail) => call === current && handler(detail);
  current.on("state", mine(showState));
  current.on("device", mine((state) => devices.show(state)));
  current.on("local", mine((stream) => {
    devices.showLocal(stream);
    recording.listen("left", stream);
  }));
  current.on("remote", mine((stream) => {
    const video = $<HTMLVideoElement>("agent-video");
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

function showState(state: CallState): void {
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
  if (before !== "recovering") captions.connected(); // a restarted model goes on counting units
  keepFocus("toggle-microphone");
  showAgent(state.session.agent);
  if (!about) void learnAbout();
  const text = toSay;
  toSay = "";
  if (text) say(text);
}

// ------------------------------------------------------------------------------------------------- the agent

function showAgent(name: string): void {
  $("agent-name").textContent = about?.name || name;
  captions.agent = about?.name || name;
}

/** One line on what the agent understands, and things to click that say it. */
async function learnAbout(): Promise<void> {
  about = await askAbout(BASE, token());
  if (!about) return;
  showAgent(about.name);
  $("about-text").textContent = about.about;
  $("examples").replaceChildren(...about.examples.map((text) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: text });
    button.addEventListener("click", () => sayOrCall(text));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  $("about").hidden = false;
}

function sayOrCall(text: string): void {
  if (say(text)) return;
  toSay = text;
  void start();
}

function say(text: string): boolean {
  if (!isOpen || !call?.say(text)) return false;
  captions.typed(text);
  return true;
}

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = $<HTMLInputElement>("text");
  const text = input.value.trim();
  if (text && say(text)) input.value = "";
});

// -------------------------------------------------------------------------------------------- coming and going

$("start").addEventListener("click", () => void start());
$("stop").addEventListener("click", () => call?.stop());
$("alert-close").addEventListener("click", hideAlert);

// A page that is loaded again goes on with the call. The token is stored for so long only: a copy of this tab has none.
addEventListener("pagehide", () => {
  const kept = call?.leave();
  if (!kept) return;
  const on = { microphone: devices.isOn("microphone"), camera: devices.isOn("camera") };
  sessionStorage.setItem("resume", JSON.stringify({ ...kept, ...on }));
});
addEventListener("pageshow", () => {
  const stored = sessionStorage.getItem("resume");
  sessionStorage.removeItem("resume");
  if (!stored) return;
  const kept = JSON.parse(stored) as { token: string; until: number; microphone: boolean; camera: boolean };
  if (Date.now() > kept.until) return;
  for (const name of ["microphone", "camera"] as const) devices.setOn(name, kept[name]);
  void start({ resume: kept.token });
});
document.addEventListener("visibilitychange", () => {
  const video = $<HTMLVideoElement>("agent-video");
  if (!document.hidden && video.srcObject && video.paused) void video.play().catch(() => {}); // some browsers stop it
});

void learnAbout();
if (!window.isSecureContext) {
  showError("This page cannot use a microphone", "Browsers allow it only on https:// or on localhost.",
    { label: INSTEAD, run: () => void start({ typingOnly: true }) });
}
