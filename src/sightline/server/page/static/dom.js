// Building nodes. Nothing in this page makes markup out of a string: text stays text.

import { icon } from "./icons.js";
import { t } from "./i18n.js";

export const $ = (id) => document.getElementById(id);

// el("p", {class: "note", onclick: f}, "text", node): attributes, listeners (on...) and properties (.name).
export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith(".")) node[name.slice(1)] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A button that shows an icon alone; its name is for screen readers and as a tooltip.
export function iconButton(name, key, onclick, given = {}) {
  const label = given["aria-label"] ?? t(key);
  const looks = given.class ? `icon-button ${given.class}` : "icon-button";
  return el("button", { type: "button", "aria-label": label, title: label, onclick, ...given, class: looks }, icon(name));
}

export function bytes(count) {
  if (count < 1024 * 1024) return `${Math.max(1, Math.round(count / 1024))} kB`;
  return `${(count / 1024 / 1024).toFixed(1)} MB`;
}

// Copies text, and lets the button show that it did.
export async function copyFrom(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text);  // pages served without TLS have no clipboard interface
  }
  const before = button.querySelector(".icon");
  button.replaceChild(icon("check"), before);
  announce(t("copied"));
  setTimeout(() => button.querySelector(".icon")?.replaceWith(before), 1500);
}

function copyBySelection(text) {
  const area = el("textarea", { class: "visually-hidden", ".value": text });
  const focused = document.activeElement;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}

let silencing;
// One sentence for screen readers. It goes again, so that nobody finds it a second time when reading the page.
export function announce(text) {
  $("announcer").textContent = text;
  clearTimeout(silencing);
  silencing = setTimeout(() => $("announcer").replaceChildren(), 8000);
}

let hiding;
// A short notice at the bottom, perhaps with a way back.
export function toast(text, action = null) {
  const box = $("toast");
  clearTimeout(hiding);
  const hide = () => box.replaceChildren();
  const back = () => {
    hide();
    action.run();
  };
  const button = action && el("button", { type: "button", class: "link", onclick: back }, action.label);
  box.replaceChildren(el("div", { class: "toast" }, el("span", {}, text), button));
  hiding = setTimeout(hide, action ? 8000 : 5000);
}
