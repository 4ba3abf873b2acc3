/** What was said, as bubbles: one for each utterance, in the order of speaking. `Transcript` knows no page elements. */

import type { CaptionEvent, Lane } from "../client";
import { clock } from "./dom";

export type Speaker = Lane | "typed";

export interface Line {
  speaker: Speaker;
  /** Since the beginning of the conversation. */
  atMs: number;
  text: string;
}

const UNIT_MS = 160;
const PAUSE_UNITS = 10; // so long a pause in a lane ends an utterance whose end was not told

/** Whether `line` belongs after `other`: what was heard in a unit was said before what is answered in it. */
function isLater(line: Line, other: Line): boolean {
  return line.atMs > other.atMs || (line.atMs === other.atMs && line.speaker === "response" && other.speaker !== "response");
}

export class Transcript {
  readonly lines: Line[] = [];
  agent = "Agent";
  #open: Partial<Record<Lane, { line: Line; unit: number }>> = {};
  #turn: Partial<Record<Lane, Line[]>> = {}; // lines since the last end
  #began = 0; // when the conversation began, and when this connection's first unit did
  #connected = 0;

  /** Units are counted from here; now: of the page's clock. */
  connected(now: number): void {
    this.#connected = now;
    this.#began ||= now;
    this.#open = {};
    this.#turn = {};
  }

  /** Adds a piece of text to its line. */
  caption({ lane, unit, text }: CaptionEvent): Line {
    const open = this.#open[lane];
    if (open && unit - open.unit <= PAUSE_UNITS) {
      open.unit = unit;
      open.line.text += text;
      return open.line;
    }
    const line = this.#add(lane, this.#connected - this.#began + unit * UNIT_MS, text.trimStart());
    this.#open[lane] = { line, unit };
    (this.#turn[lane] ??= []).push(line);
    return line;
  }

  /** The next text of this lane is another utterance. `text`, if any, is what was said in this one: of its lines the
   * first has it, the others go. Returns them. */
  ended(lane: Lane, text: string): Line[] {
    const [first, ...others] = this.#turn[lane] ?? [];
    delete this.#open[lane];
    delete this.#turn[lane];
    if (!first || !text) return [];
    first.text = text;
    for (const line of others) this.lines.splice(this.lines.indexOf(line), 1);
    return [first, ...others];
  }

  typed(text: string, now: number): Line {
    return this.#add("typed", now - this.#began, text);
  }

  #add(speaker: Speaker, atMs: number, text: string): Line {
    const line = { speaker, atMs, text };
    let place = this.lines.length;
    while (place > 0 && isLater(this.lines[place - 1]!, line)) place--;
    this.lines.splice(place, 0, line);
    return line;
  }

  name(speaker: Speaker): string {
    return { response: this.agent, transcript: "You", typed: "You (typed)" }[speaker];
  }

  toString(): string {
    return this.lines.map((line) => `${clock(line.atMs)}  ${this.name(line.speaker)}: ${line.text.trim()}\n`).join("");
  }
}
