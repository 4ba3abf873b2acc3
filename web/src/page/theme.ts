/** Dark or light: as the system has it until the visitor says otherwise. */

import { $ } from "./dom";

const root = document.documentElement;

function toggle(): void {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = dark ? "light" : "dark";
  localStorage.setItem("theme", theme);
  root.dataset.theme = theme;
}

export function followTheme(): void {
  const theme = localStorage.getItem("theme");
  if (theme) root.dataset.theme = theme;
  $("theme").addEventListener("click", toggle);
}
