/**
 * The messages of a call, as in `wan_streamer/serving/messages.py` and docs/events.schema.json.
 *
 * `ServerEvent`  what the server sends      `PageMessage`  what it takes
 */

export type Lane = "response" | "transcript";
export type Percentiles = { p50: number; p95: number; p99?: number };

export interface SessionEvent {
  type: "session";
  state: "live" | "recovering" | "ended" | "busy";
  message: string;
  agent: string;
  width: number;
  height: number;
  fps: number;
  unit_ms: number;
}

/** Text that begins in a unit: the agent says it (`response`), or has heard it (`transcript`). */
export interface CaptionEvent {
  type: "caption";
  lane: Lane;
  unit: number;
  text: string;
}

/** The model has ended a turn of a lane in this unit, after its text. */
export interface TurnEvent {
  type: "turn";
  lane: Lane;
  unit: number;
  /** What was said in the turn, where that counts instead of the captions; else "". */
  text: string;
}

export interface PlaybackEvent {
  type: "playback";
  position_ms: number;
  queued_ms: number;
  dropped_ms: number | null;
}

/** Once a second. Milliseconds are over the last ten seconds, counts over the whole conversation. */
export interface StatsEvent {
  type: "stats";
  units: number;
  deadline_misses: number;
  held: number;
  late: number;
  backlog: number;
  playout_ms: number;
  model_latency_ms: Percentiles;
  event_latency_ms: Percentiles;
  stage_ms: Record<string, Percentiles>;
}

export interface NoticeEvent {
  type: "notice";
  message: string;
}

/** One message was not taken; the call goes on. */
export interface ErrorEvent {
  type: "error";
  message: string;
  code: string;
}

export interface PongEvent {
  type: "pong";
  t: number;
}

export type ServerEvent =
  | SessionEvent
  | CaptionEvent
  | TurnEvent
  | PlaybackEvent
  | StatsEvent
  | NoticeEvent
  | ErrorEvent
  | PongEvent;

export type PageMessage =
  | { type: "text"; text: string }
  | { type: "ping"; t: number }
  | { type: "devices"; microphone: boolean; camera: boolean }
  | { type: "clear" };
