/** The box below the picture: errors stay until they are closed, notices go by themselves. */

import { $ } from "./dom";

const NOTICE_MS = 20_000;
let timer: ReturnType<typeof setTimeout> | undefined;

export interface Action {
  label: string;
  run: () => void;
}

export function showError(title: string, text = "", action?: Action): void {
  show("error", title, text, action);
}

export function showNotice(title: string, text = ""): void {
  show("notice", title, text);
  timer = setTimeout(hideAlert, NOTICE_MS);
}

export function hideAlert(): void {
  clearTimeout(timer);
  $("alert").hidden = true;
}

function show(kind: "error" | "notice", title: string, text: string, action?: Action): void {
  clearTimeout(timer);
  $("alert").dataset.kind = kind;
  $("alert-title").textContent = title;
  $("alert-text").textContent = text;
  const button = $("alert-action");
  button.hidden = !action;
  button.textContent = action?.label ?? "";
  button.onclick = () => {
    hideAlert();
    action?.run();
  };
  $("alert").hidden = false;
}
