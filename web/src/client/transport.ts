/**
 * What carries a call: the narrow interface between `call.ts` and the ways through a network.
 *
 * The call knows devices, the line, resuming and the meaning of messages. A transport knows how to ask the server for a
 * call, how media travel and when its connection is lost; it says nothing to the visitor. A transport object carries one
 * connection: the call makes another for the next.
 *
 *     open ──► "waiting": the place in the line; the call waits, then opens another one with the ticket
 *          ──► "open": messages and media flow ──► handlers.message, handlers.remote ──► handlers.lost or close
 *          ──► rejects: `CallError`; "unreachable": the call tries the next transport of its list
 */

import type { PageMessage, ServerEvent } from "./events";

export type DeviceName = "microphone" | "camera";
/** The visitor's open devices; one that is missing is off. */
export type Tracks = Partial<Record<DeviceName, MediaStreamTrack>>;

/** base: address of the server's page, ending in "/". token: the server's, or "". queue: the ticket with which it waited,
 * or "". resume: the token of the conversation to go on with, or "". */
export interface SessionRequest {
  base: URL;
  token: string;
  queue: string;
  resume: string;
}

/** With `token` another connection goes on with the conversation, within `ms` after this one is lost. Each token works
 * once: the request that uses it gets the next. */
export interface Resume {
  token: string;
  ms: number;
}

export type Entry =
  | { kind: "open" }
  | { kind: "waiting"; ticket: string; place: number; estimateS: number | null };

export interface Handlers {
  /** One message of the server. May be called before `open` resolves. */
  message(event: ServerEvent): void;
  /** The agent's sound and picture: again with the same stream when a track has been added. */
  remote(stream: MediaStream): void;
  /** The next token, told as soon as it is known: the one before is used up, whether or not `open` resolves. */
  resume(next: Resume): void;
  /** An open connection is lost: at most once, never after `close`, never instead of rejecting `open`. */
  lost(): void;
}

/** As measured since the last time of asking; null: not known. Buffers are the browser's own. */
export interface NetworkStats {
  fps: number;
  audioBufferMs: number | null;
  videoBufferMs: number | null;
  packetsLost: number;
}

export interface Transport {
  /** Resolves when messages can be sent, or with the place in the line. Rejects with a `CallError`, also after `close`. */
  open(request: SessionRequest, tracks: Tracks, handlers: Handlers): Promise<Entry>;
  /** Returns false if the message cannot be sent now. */
  send(message: PageMessage): boolean;
  /** Sends another track from now on, or nothing. */
  setTrack(device: DeviceName, track: MediaStreamTrack | null): Promise<void>;
  network(): Promise<NetworkStats>;
  /** Ends the connection; safe at any time and more than once. goodbye: the conversation is over as well, which the
   * server is told in a way that works while the page goes away; otherwise the server keeps it for a while. */
  close(goodbye: boolean): void;
}

/** One entry of the list that a call tries in order. */
export interface TransportKind {
  name: string;
  /** Whether this browser has what it takes. */
  supported(): boolean;
  create(): Transport;
}
