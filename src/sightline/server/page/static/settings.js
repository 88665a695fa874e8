// What the user chose, kept in this browser.

const KEY = "sightline.settings";

// name: [least, most, step]; a field that is left empty is not sent, so that the checkpoint's default holds.
export const SAMPLING = {
  temperature: [0, 2, 0.05],
  top_p: [0.01, 1, 0.01],
  top_k: [0, 1000, 1],
  max_tokens: [1, 1_000_000, 1],
  repetition_penalty: [0.1, 2, 0.05],
  seed: [0, 4294967295, 1],
};
const WHOLE = ["top_k", "max_tokens", "seed"];
const DEFAULTS = { theme: "", language: "", model: "", key: "", system: "", sampling: {} };

export const settings = { ...DEFAULTS, ...stored() };

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {};
  }
}

export function saveSettings(changes) {
  Object.assign(settings, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Storage is full or forbidden: the choice holds until the page is left.
  }
}

export function applyTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

// The value of a field's text: a number, null if it is empty, undefined if it is out of range.
export function samplingValue(name, text) {
  if (text.trim() === "") return null;
  const [least, most] = SAMPLING[name];
  const value = Number(text);
  if (!Number.isFinite(value) || value < least || value > most) return undefined;
  return WHOLE.includes(name) && !Number.isInteger(value) ? undefined : value;
}

export function sampling() {
  return Object.fromEntries(Object.entries(settings.sampling).filter(([name, value]) => name in SAMPLING && value !== null));
}
