// The page's words. Keys are the same in both languages; a test holds them against each other.

import en from "./en.js";
import zh from "./zh.js";

const WORDS = { en, zh };
let current = "en";

export const language = () => current;

// `wanted` is "en", "zh" or "" for the browser's own.
export function setLanguage(wanted) {
  const own = (navigator.languages ?? [navigator.language]).find((tag) => tag.slice(0, 2) in WORDS) ?? "en";
  current = wanted in WORDS ? wanted : own.slice(0, 2);
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
  translate(document);
}

// t("enlarge", {name: "a"}) fills {name} in.
export function t(key, values = {}) {
  const words = WORDS[current][key] ?? WORDS.en[key] ?? key;
  return words.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

// Fill in what index.html marks with data-i18n (its text), -label (its name and tooltip) and -placeholder.
export function translate(root) {
  for (const node of root.querySelectorAll("[data-i18n]")) node.textContent = t(node.dataset.i18n);
  for (const node of root.querySelectorAll("[data-i18n-label]")) {
    node.setAttribute("aria-label", t(node.dataset.i18nLabel));
    if (node.matches("button, select, a")) node.title = t(node.dataset.i18nLabel);
  }
  for (const node of root.querySelectorAll("[data-i18n-placeholder]")) node.placeholder = t(node.dataset.i18nPlaceholder);
}

export function number(value, digits = 0) {
  return value.toLocaleString(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// Seconds as one reads them: 8 ms, 0.31 s, 12.4 s.
export function seconds(value) {
  if (value < 0.1) return `${number(value * 1000, value < 0.001 ? 1 : 0)} ms`;
  return `${number(value, value < 10 ? 2 : 1)} s`;
}
