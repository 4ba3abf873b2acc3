/** What every part of the page needs of its elements. */

export function $<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element ${id}`);
  return element as Kind;
}

/** Tells a screen reader what the eye sees anyway. */
export function announce(message: string): void {
  $("announcer").textContent = message;
}

/** Milliseconds as 1:02 or 1:00:02. */
export function clock(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (value: number) => String(value).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** A name for a file of this moment. */
export function fileName(what: string, extension: string): string {
  const now = new Date();
  const local = new Date(now.getTime() - now.getTimezoneOffset() * 60_000);
  return `${what} ${local.toISOString().slice(0, 16).replace("T", " ").replace(":", ".")}.${extension}`;
}

export function download(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
