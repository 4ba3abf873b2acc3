/** What a call is asked for, and what it tells. */

import type { CallError } from "./errors";
import type { CaptionEvent, ErrorEvent, NoticeEvent, PageMessage, PlaybackEvent, ServerEvent, SessionEvent, StatsEvent, TurnEvent } from "./events";
import type { DeviceName, NetworkStats, TransportKind } from "./transport";

export interface CallOptions {
  /** Address of the server's page, ending in "/". */
  base: URL;
  /** Wanted at the start; both by default. */
  microphone?: boolean;
  camera?: boolean;
  /** Which ones; "": the browser's choice. */
  microphoneId?: string;
  cameraId?: string;
  /** What the server asks for. */
  token?: string;
  /** The token of a conversation to go on with. */
  resume?: string;
  transports?: readonly TransportKind[];
}

/** Why a call is not live. offline: this machine has no network. asleep: the page was suspended. lost: neither. */
export type Why = "offline" | "asleep" | "lost";

export type CallState =
  | { state: "connecting"; message: string }
  | { state: "waiting"; message: string; place: number; estimateS: number | null }
  | { state: "live"; session: SessionEvent }
  | { state: "recovering"; message: string }
  | { state: "reconnecting"; message: string; why: Why }
  | { state: "ended"; message: string; failed: boolean };

/** off: by the visitor. lost: it ended by itself. silenced: the system holds it back. problem: it could not be opened. */
export interface DeviceState {
  device: DeviceName;
  state: "on" | "off" | "lost" | "silenced" | "problem";
  problem?: CallError;
}

export interface CallEvents {
  state: CallState;
  device: DeviceState;
  /** The visitor's open devices. */
  local: MediaStream;
  remote: MediaStream;
  caption: CaptionEvent;
  turn: TurnEvent;
  playback: PlaybackEvent;
  stats: StatsEvent;
  network: NetworkStats & { rttMs: number | null; transport: string };
  notice: NoticeEvent;
  /** The server did not take one message; the call goes on. */
  error: ErrorEvent;
  /** Every message in both directions but pings, for logs. */
  message: { from: "server" | "page"; message: ServerEvent | PageMessage };
}
