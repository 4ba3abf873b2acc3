/** The panel of latencies: one line when it is folded. */

import type { CallEvents, StatsEvent } from "../client";
import { $ } from "./dom";

const UNIT_MS = 160;
// The way of a unit: the model's own stages (2) lie between those of the server.
const STAGE_ORDER: Record<string, number> = { "server: to model": 1, "server: from model": 3, "server: playout": 4 };

type Network = CallEvents["network"];

const ms = (value: number | null | undefined) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : `${Math.round(value)} ms`;

export class Latency {
  #stats: StatsEvent | null = null;
  #network: Network | null = null;

  clear(): void {
    this.#stats = this.#network = null;
    $("brief").textContent = "starts with the call";
  }

  showStats(stats: StatsEvent): void {
    this.#stats = stats;
    this.#show();
  }

  showNetwork(network: Network): void {
    this.#network = network;
    this.#show();
  }

  #show(): void {
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
      `backlog ${stats.backlog}`,
    ];
    if (network) {
      facts.push(`${network.fps} fps`,
        `browser buffers: audio ${ms(network.audioBufferMs)}, video ${ms(network.videoBufferMs)}`,
        `${network.packetsLost} packets lost`, `over ${network.transport}`);
    }
    $("facts").textContent = facts.join(" · ");
  }
}

function showStages(stages: StatsEvent["stage_ms"]): void {
  for (const [name, { p50, p95 }] of Object.entries(stages)) {
    const row = $("stages").querySelector<HTMLElement>(`[data-stage="${CSS.escape(name)}"]`) ?? addStage(name);
    const width = (value: number) => `${Math.min(100, (value / UNIT_MS) * 100)}%`;
    row.querySelector<HTMLElement>(".p50")!.style.width = width(p50);
    row.querySelector<HTMLElement>(".p95")!.style.width = width(p95);
    row.querySelector("b")!.textContent = `${p50.toFixed(p50 < 10 ? 1 : 0)} / ${p95.toFixed(p95 < 10 ? 1 : 0)}`;
  }
}

function addStage(name: string): HTMLElement {
  const row = document.createElement("li");
  row.dataset.stage = name;
  row.innerHTML = '<span></span><div class="bar-track"><i class="p95"></i><i class="p50"></i></div><b></b>';
  row.firstElementChild!.textContent = name.replace("server: ", "");
  row.classList.toggle("server", name.startsWith("server: "));
  row.style.order = String(STAGE_ORDER[name] ?? 2);
  $("stages").append(row);
  return row;
}
