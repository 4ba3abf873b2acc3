/** The conversation on the page: bubbles that scroll, can be copied and saved; the subtitle in the picture. */

import type { CaptionEvent, Lane } from "../client";
import { $, announce, clock, download, fileName } from "./dom";
import { showError } from "./notices";
import { type Line, Transcript } from "./transcript";

const MAX_SHOWN = 500; // all are saved
const SUBTITLE_MS = 6000;
const NEAR_PX = 40;

export class Captions {
  #transcript = new Transcript();
  #elements = new Map<Line, HTMLElement>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #follows = true; // until the visitor scrolls up
  #top = 0; // where the list was scrolled to when that was last looked at
  readonly #list = $("captions");

  constructor() {
    this.#list.addEventListener("scroll", () => this.#scrolled());
    new ResizeObserver(() => this.#follows && this.#scroll()).observe(this.#list);
    $("latest").addEventListener("click", () => this.#scroll());
    $("copy").addEventListener("click", () => void this.#copy());
    $("save").addEventListener("click", () => {
      download(new Blob([this.#transcript.toString()], { type: "text/plain" }), fileName("conversation", "txt"));
    });
  }

  set agent(name: string) {
    this.#transcript.agent = name;
  }

  clear(): void {
    const agent = this.#transcript.agent;
    this.#transcript = new Transcript();
    this.#transcript.agent = agent;
    this.#elements.clear();
    this.#list.replaceChildren();
    this.#showButtons();
    this.#scroll();
    this.subtitle("");
  }

  connected(): void {
    this.#transcript.connected(performance.now());
  }

  add(event: CaptionEvent): void {
    const line = this.#transcript.caption(event);
    this.#show(line);
    if (event.lane === "response") this.subtitle(line.text);
  }

  /** `text`, if any, is what was said in the turn. */
  ended(lane: Lane, text: string): void {
    const [first, ...gone] = this.#transcript.ended(lane, text);
    if (first) this.#show(first);
    for (const line of gone) {
      this.#elements.get(line)?.parentElement?.remove();
      this.#elements.delete(line);
    }
  }

  typed(text: string): void {
    this.#show(this.#transcript.typed(text, performance.now()));
    this.#scroll();
  }

  subtitle(text: string): void {
    const words = text.trim();
    $("subtitle").textContent = words.length > 120 ? `… ${words.slice(-120).replace(/^\S*\s/, "")}` : words;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => ($("subtitle").textContent = ""), SUBTITLE_MS);
  }

  #show(line: Line): void {
    this.#scrolled(); // its event comes with the next frame, and the visitor may have scrolled since the last one
    const element = this.#elements.get(line) ?? this.#bubble(line);
    element.textContent = line.text.trim();
    if (this.#follows) this.#scroll();
  }

  #bubble(line: Line): HTMLElement {
    const bubble = document.createElement("p");
    const head = document.createElement("span");
    const name = document.createElement("b");
    name.textContent = this.#transcript.name(line.speaker);
    const time = document.createElement("time");
    time.textContent = clock(line.atMs);
    head.append(name, " ", time);
    const item = document.createElement("li");
    item.className = item.dataset.lane = line.speaker;
    item.append(head, bubble);
    this.#list.insertBefore(item, this.#list.children[this.#placeOf(line)] ?? null);
    while (this.#list.children.length > MAX_SHOWN) this.#list.firstElementChild?.remove();
    this.#elements.set(line, bubble);
    this.#showButtons();
    return bubble;
  }

  /** Its place among the bubbles, of which the first may have been removed. */
  #placeOf(line: Line): number {
    const { lines } = this.#transcript;
    return lines.indexOf(line) - (lines.length - 1 - this.#list.children.length);
  }

  #scroll(): void {
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#scrolled();
  }

  #scrolled(): void {
    const { scrollHeight, scrollTop, clientHeight } = this.#list;
    // A list that was only made smaller has its end further away, and was not scrolled up.
    if (scrollHeight - scrollTop - clientHeight < NEAR_PX) this.#follows = true;
    else if (scrollTop < this.#top) this.#follows = false;
    this.#top = scrollTop;
    $("latest").hidden = this.#follows;
  }

  #showButtons(): void {
    for (const id of ["copy", "save"]) $<HTMLButtonElement>(id).disabled = this.#transcript.lines.length === 0;
  }

  async #copy(): Promise<void> {
    try {
      await navigator.clipboard.writeText(this.#transcript.toString());
    } catch {
      return showError("The browser does not allow copying", "Save the conversation instead, or select its text.");
    }
    announce("The conversation was copied.");
    const button = $("copy");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
}
