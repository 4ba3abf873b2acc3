// The page: buttons, captions, latency. What a call is lives in call.js.

import { Call, CallError } from "./call.js";

const UNIT_MS = 160;
const TURN_UNITS = 10; // a pause of 1.6 s in a lane starts a new line
const MAX_TURNS = 200;
const SUBTITLE_MS = 6000;
// The way of a unit: the model's own stages (2) lie between those of the server.
const STAGE_ORDER = { "server: to model": 1, "server: from model": 3, "server: playout": 4 };

const $ = (id) => document.getElementById(id);
let call = null;
let turns = {}; // lane -> {unit, element}
let latest = { stats: null, network: null };
let meter = null;
let subtitleTimer = null;

// The token comes behind the #, which is sent to no server, and leaves the address bar and the history at once.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname + location.search);
}

// ---------------------------------------------------------------------------------------------------- states

const WELCOME = { title: $("poster-title").textContent, text: $("poster-text").textContent };
const STATUS = { idle: "Ready", connecting: "Connecting", waiting: "Waiting", live: "Live", recovering: "Restarting", reconnecting: "Reconnecting", ended: "Call ended" };

function setState(state, message) {
  document.body.dataset.state = state;
  $("status-text").textContent = message || STATUS[state];
  const open = state === "live" || state === "recovering";
  const entering = ["connecting", "waiting", "reconnecting"].includes(state);
  $("stop").disabled = !(open || entering);
  $("start").disabled = open || entering;
  $("start").textContent = entering ? STATUS[state] : state === "ended" ? "Call again" : "Start call";
  $("text").disabled = $("send").disabled = !open;
  $("poster-title").textContent = state === "ended" ? "The call has ended" : WELCOME.title;
  $("poster-text").textContent = state === "ended" ? "You can start another one at any time." : WELCOME.text;
}

function showAlert(title, text = "") {
  $("alert-title").textContent = title;
  $("alert-text").textContent = text;
  $("alert").hidden = false;
}

// resume: the token of a conversation to go on with
async function start(resume = "") {
  if (call) return;
  $("alert").hidden = true;
  $("captions").replaceChildren();
  turns = {};
  latest = { stats: null, network: null };
  const current = (call = new Call());
  listen(current);
  try {
    await current.start({
      microphone: isOn("microphone"), camera: isOn("camera"),
      microphoneId: $("microphone").value, cameraId: $("camera").value,
      token: sessionStorage.getItem("token"), resume,
    });
    await listDevices();
  } catch (error) {
    if (call !== current) return; // stopped meanwhile
    const known = error instanceof CallError ? error : new CallError("The call could not start", String(error.message ?? error));
    call = null;
    current.stop();
    showLocal(null);
    setState("idle", "Not connected");
    showAlert(known.title, known.message);
  }
}

function listen(current) {
  const on = (type, handler) => current.addEventListener(type, ({ detail }) => call === current && handler(detail));
  on("state", ({ state, message, agent, failed }) => {
    if (agent) $("agent-name").textContent = agent;
    if (state === "reconnecting") turns = {}; // units are counted anew
    if (state !== "ended") return setState(state, message);
    call = null;
    showLocal(null);
    $("agent-video").srcObject = null;
    setSubtitle("");
    setState("ended", failed ? "Call ended" : message);
    if (failed) showAlert("The call ended", message);
  });
  on("local", showLocal);
  on("remote", (stream) => {
    if ($("agent-video").srcObject !== stream) $("agent-video").srcObject = stream;
  });
  on("caption", addCaption);
  on("notice", ({ message }) => showAlert(message));
  on("error", ({ message }) => showAlert("The agent did not get that", message));
  on("stats", (stats) => showLatency({ stats }));
  on("network", (network) => showLatency({ network }));
}

// --------------------------------------------------------------------------------------------------- captions

function addCaption({ lane, unit, text }) {
  let turn = turns[lane];
  if (!turn || unit - turn.unit > TURN_UNITS) turn = turns[lane] = { element: addTurn(lane), unit };
  turn.unit = unit;
  turn.element.lastElementChild.append(text);
  if (lane === "response") setSubtitle(turn.element.lastElementChild.textContent);
  $("captions").scrollTop = $("captions").scrollHeight;
}

function addTurn(lane) {
  const element = document.createElement("li");
  element.className = lane;
  element.dataset.lane = lane;
  const who = document.createElement("span");
  who.textContent = { response: "Agent", transcript: "You", typed: "You typed" }[lane];
  element.append(who, document.createElement("p"));
  const list = $("captions");
  list.append(element);
  while (list.children.length > MAX_TURNS) list.firstElementChild.remove();
  return element;
}

function setSubtitle(text) {
  const words = text.trim();
  $("subtitle").textContent = words.length > 120 ? `… ${words.slice(-120).replace(/^\S*\s/, "")}` : words;
  clearTimeout(subtitleTimer);
  subtitleTimer = setTimeout(() => ($("subtitle").textContent = ""), SUBTITLE_MS);
}

function sendText(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !call?.say(text)) return;
  addTurn("typed").lastElementChild.textContent = text;
  $("captions").scrollTop = $("captions").scrollHeight;
  $("text").value = "";
}

// ---------------------------------------------------------------------------------------------------- latency

const ms = (value) => (value == null || Number.isNaN(value) ? "–" : `${Math.round(value)} ms`);

function showLatency(update) {
  latest = { ...latest, ...update };
  const { stats, network } = latest;
  $("rtt").textContent = ms(network?.rtt);
  if (!stats) return;
  $("model-p50").textContent = ms(stats.model_latency_ms.p50);
  $("model-p95").textContent = ms(stats.model_latency_ms.p95);
  $("event-p50").textContent = ms(stats.event_latency_ms.p50);
  $("event-p95").textContent = ms(stats.event_latency_ms.p95);
  const total = stats.event_latency_ms.p50 + (network?.rtt ?? NaN) + stats.playout_ms + (network?.audioBuffer ?? 0);
  $("total").textContent = ms(total);
  showStages(stats.stage_ms);
  const facts = [
    `${stats.deadline_misses} of ${stats.units} units missed their deadline`,
    `${stats.held} held`,
    `${stats.late * 20} ms bridged`,
    `backlog ${stats.backlog}`,
  ];
  if (network) {
    facts.push(`${network.fps} fps`, `browser buffers: audio ${ms(network.audioBuffer)}, video ${ms(network.videoBuffer)}`,
      `${network.lost} packets lost`);
  }
  $("facts").textContent = facts.join(" · ");
}

function showStages(stages) {
  const list = $("stages");
  for (const [name, { p50, p95 }] of Object.entries(stages)) {
    let row = list.querySelector(`[data-stage="${CSS.escape(name)}"]`);
    if (!row) {
      row = document.createElement("li");
      row.dataset.stage = name;
      row.innerHTML = '<span></span><div class="bar-track"><i class="p95"></i><i class="p50"></i></div><b></b>';
      row.firstElementChild.textContent = name.replace("server: ", "");
      row.classList.toggle("server", name.startsWith("server: "));
      row.style.order = STAGE_ORDER[name] ?? 2;
      list.append(row);
    }
    const width = (value) => `${Math.min(100, (value / UNIT_MS) * 100)}%`;
    row.querySelector(".p50").style.width = width(p50);
    row.querySelector(".p95").style.width = width(p95);
    row.querySelector("b").textContent = `${p50.toFixed(p50 < 10 ? 1 : 0)} / ${p95.toFixed(p95 < 10 ? 1 : 0)}`;
  }
}

// ---------------------------------------------------------------------------------------------------- devices

const isOn = (name) => $(`toggle-${name}`).getAttribute("aria-pressed") === "true";
const setOn = (name, on) => $(`toggle-${name}`).setAttribute("aria-pressed", String(on));

async function switchDevice(name, on) {
  setOn(name, on);
  if (!call) return;
  try {
    await call.setDevice(name, on, $(name).value);
  } catch (error) {
    setOn(name, false);
    showAlert(error.title ?? "The device could not be opened", error.message);
  }
}

// Names appear only after permission was given once.
async function listDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  for (const [name, kind] of [["microphone", "audioinput"], ["camera", "videoinput"]]) {
    const select = $(name);
    const chosen = select.value;
    const named = devices.filter((device) => device.kind === kind && device.deviceId && device.deviceId !== "default");
    select.replaceChildren(new Option(`Default ${name}`, ""), ...named.map((d) => new Option(d.label || name, d.deviceId)));
    select.value = named.some((device) => device.deviceId === chosen) ? chosen : "";
  }
}

function showLocal(stream) {
  const video = stream?.getVideoTracks().length ? stream : null;
  $("self-video").srcObject = video;
  $("stage").classList.toggle("with-self", Boolean(video));
  meter?.close();
  meter = stream?.getAudioTracks().length ? showLevel(stream) : null;
}

// A level bar, so that a visitor sees whether the microphone works.
function showLevel(stream) {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 512 });
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const timer = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    const rms = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
    $("level").style.transform = `scaleX(${Math.min(1, Math.sqrt(rms) * 1.6)})`;
  }, 100);
  return {
    close() {
      clearInterval(timer);
      context.close();
      $("level").style.transform = "scaleX(0)";
    },
  };
}

// ------------------------------------------------------------------------------------------------------ theme

function applyTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function toggleTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = dark ? "light" : "dark";
  localStorage.setItem("theme", theme);
  applyTheme(theme);
}

applyTheme(localStorage.getItem("theme"));
$("theme").addEventListener("click", toggleTheme);
$("start").addEventListener("click", () => start());
$("stop").addEventListener("click", () => call?.stop());
$("compose").addEventListener("submit", sendText);
$("alert-close").addEventListener("click", () => ($("alert").hidden = true));
for (const name of ["microphone", "camera"]) {
  $(`toggle-${name}`).addEventListener("click", () => switchDevice(name, !isOn(name)));
  $(name).addEventListener("change", () => isOn(name) && switchDevice(name, true));
}
// A page that is loaded again goes on with the call. The token is stored for so long only: a copy of this tab has none.
addEventListener("pagehide", () => {
  const kept = call?.leave();
  if (kept) sessionStorage.setItem("resume", JSON.stringify({ ...kept, microphone: isOn("microphone"), camera: isOn("camera") }));
});
addEventListener("pageshow", () => {
  const kept = JSON.parse(sessionStorage.getItem("resume"));
  sessionStorage.removeItem("resume");
  if (!kept || Date.now() > kept.until) return;
  for (const name of ["microphone", "camera"]) setOn(name, kept[name]);
  start(kept.token);
});
navigator.mediaDevices?.addEventListener?.("devicechange", listDevices);
listDevices();
if (!window.isSecureContext) {
  showAlert("This page cannot use a microphone", "Browsers allow it only on https:// or on localhost.");
}
