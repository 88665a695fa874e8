// The panel of settings.

import { $, el } from "./dom.js";
import { setLanguage, t } from "./i18n.js";
import { applyTheme, SAMPLING, samplingValue, saveSettings, settings } from "./settings.js";

export class Preferences {
  #dialog = $("settings");

  // `onchange(name)` hears of "system", "key", "language" and "theme".
  constructor(chat, onchange) {
    this.chat = chat;
    this.onchange = onchange;
    $("open-settings").addEventListener("click", () => this.open());
    $("system").addEventListener("change", () => this.#system());
    $("api-key-form").addEventListener("submit", (event) => event.preventDefault());
    $("api-key").addEventListener("change", () => this.#set("key", $("api-key").value.trim()));
    $("language").addEventListener("change", () => {
      setLanguage($("language").value);
      this.#set("language", $("language").value);
      this.#fields();
      this.#calm();
    });
    for (const choice of document.querySelectorAll("[name=theme]")) {
      choice.addEventListener("change", () => {
        saveSettings({ theme: choice.value });
        applyTheme();
        this.onchange("theme");
      });
    }
    $("reset-sampling").addEventListener("click", () => {
      saveSettings({ sampling: {} });
      this.#fields();
    });
    $("remove-all").addEventListener("click", () => this.#removeAll());
    this.#calm();
  }

  open() {
    $("system").value = this.chat.conversation.system ?? "";
    $("api-key").value = settings.key;
    $("language").value = settings.language;
    const theme = document.querySelector(`[name=theme][value="${settings.theme}"]`);
    theme.checked = true;
    this.#calm();
    this.#fields();
    this.#dialog.showModal();
  }

  #set(name, value) {
    saveSettings({ [name]: value });
    this.onchange(name);
  }

  // For this conversation, and for new ones.
  #system() {
    this.chat.setSystem($("system").value);
    this.#set("system", $("system").value);
  }

  #fields() {
    $("sampling").replaceChildren(...Object.keys(SAMPLING).map((name) => this.#field(name)));
  }

  #field(name) {
    const [least, most, step] = SAMPLING[name];
    const error = el("span", { class: "field-error", id: `error-${name}`, role: "status" });
    const help = el("span", { class: "field-help", id: `help-${name}` }, t(`help_${name}`));
    const input = el("input", {
      type: "number",
      id: `sampling-${name}`,
      min: least,
      max: most,
      step,
      inputmode: "decimal",
      placeholder: t("default"),
      "aria-describedby": `help-${name} error-${name}`,
      ".value": String(settings.sampling[name] ?? ""),
    });
    input.addEventListener("input", () => {
      const value = input.validity.badInput ? undefined : samplingValue(name, input.value);
      const wrong = value === undefined;
      input.setAttribute("aria-invalid", String(wrong));
      error.textContent = wrong ? t("outOfRange", { least, most }) : "";
      if (!wrong) saveSettings({ sampling: { ...settings.sampling, [name]: value } });
    });
    return el("div", { class: "setting" }, el("label", { for: input.id }, t(`label_${name}`)), input, help, error);
  }

  // The second click does it; the first one asks.
  #removeAll() {
    const button = $("remove-all");
    if (button.classList.contains("sure")) {
      this.chat.removeAll();
      this.#dialog.close();
      return;
    }
    button.classList.add("sure");
    button.textContent = t("removeAllSure");
  }

  #calm() {
    $("remove-all").classList.remove("sure");
    $("remove-all").textContent = t("removeAll");
  }
}
