// Dark and light: the system's choice until the reader makes one.
import { button } from "./dom.js";

const CHOICES = ["auto", "light", "dark"];
const THEME_NAMES = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" };
const listeners = [];

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Call back when colours changed: what is painted on a canvas must be painted again. */
export function onColours(listener) {
  listeners.push(listener);
}

function changed() {
  for (const listener of listeners) listener();
}

export function startTheme() {
  const old = document.getElementById("theme");
  let choice = "auto";
  const show = () => {
    if (choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    toggle.textContent = THEME_NAMES[choice];
    changed();
  };
  const toggle = button("", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    show();
  }, { class: "ghost", id: "theme" });
  old.replaceWith(toggle);
  show();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  // Paper is white, also for a reader in the dark.
  let before = "auto";
  addEventListener("beforeprint", () => {
    before = choice;
    choice = "light";
    show();
  });
  addEventListener("afterprint", () => {
    choice = before;
    show();
  });
}
