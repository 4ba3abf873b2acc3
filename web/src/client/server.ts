/** Requests to the server, for all transports. */

import { offline, refused } from "./errors";
import type { Entry, SessionRequest } from "./transport";

/** The place in the line as the server tells it, in answers with status 202 and from `GET api/queue`. */
export interface PlaceBody {
  queue: string;
  place: number;
  estimate_s: number | null;
}

export function waiting(body: PlaceBody): Entry {
  return { kind: "waiting", ticket: body.queue, place: body.place, estimateS: body.estimate_s };
}

export function bearer(token: string): Record<string, string> {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** Posts JSON. Raises `CallError` if the server does not answer or refuses. */
export async function post<Body>(request: SessionRequest, path: string, body: unknown): Promise<Body> {
  const response = await fetch(new URL(path, request.base), {
    method: "POST",
    headers: { "Content-Type": "application/json", ...bearer(request.token) },
    body: JSON.stringify(body),
  }).catch(() => null);
  if (!response) throw offline();
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw refused(response.status, answer);
  return answer as Body;
}

/** Ends a session or gives up a place in the line, also while the page goes away. */
export function sayGoodbye(base: URL, session: string): void {
  const body = new Blob([JSON.stringify({ session })], { type: "application/json" });
  navigator.sendBeacon(new URL("api/close", base), body);
}

/** The next step of one that waits: "ready" to open a call, "gone" from the line, or its place. */
export async function askLine(base: URL, ticket: string, signal: AbortSignal): Promise<"ready" | "gone" | PlaceBody> {
  const response = await fetch(new URL("api/queue", base), { headers: bearer(ticket), signal }).catch(() => null);
  if (response?.status === 404) return "gone";
  if (!response?.ok) throw offline();
  const body = (await response.json()) as PlaceBody & { ready: boolean };
  return body.ready ? "ready" : { ...body, queue: ticket };
}

/** STUN and TURN servers that the server was configured with; usually none. */
export async function askIce({ base, token }: SessionRequest): Promise<RTCIceServer[]> {
  const response = await fetch(new URL("api/ice", base), { headers: bearer(token) }).catch(() => null);
  if (!response?.ok) return []; // the offer will be told why
  return ((await response.json()) as { ice_servers: RTCIceServer[] }).ice_servers;
}

export interface About {
  name: string;
  about: string;
  examples: string[];
}

/** What the agent understands, if its makers wrote that down. */
export async function askAbout(base: URL, token: string): Promise<About | null> {
  const response = await fetch(new URL("api/status", base), { headers: bearer(token) }).catch(() => null);
  if (!response?.ok) return null;
  return ((await response.json()) as { agent?: About | null }).agent ?? null;
}

