// The choice of the model: the base and its adapters, as the server lists them.

import { listModels } from "./api.js";
import { $, el } from "./dom.js";
import { number, t } from "./i18n.js";
import { saveSettings, settings } from "./settings.js";

export class Models {
  #select = $("model");
  #known = [];

  constructor() {
    this.#select.addEventListener("change", () => {
      saveSettings({ model: this.#select.value });
      this.#describe();
    });
  }

  // Ask the server. Raises ServerError.
  async load() {
    this.#known = await listModels(settings.key);
    const ids = this.#known.map((model) => model.id);
    if (!ids.includes(settings.model)) saveSettings({ model: ids[0] ?? "" });
    this.draw();
  }

  draw() {
    const bases = this.#known.filter((model) => !this.#parent(model));
    const options = bases.flatMap((base) => [base, ...this.#known.filter((model) => this.#parent(model) === base.id)]);
    this.#select.replaceChildren(...options.map((model) => this.#option(model)));
    this.#select.value = settings.model;
    this.#select.disabled = options.length < 1;
    this.#describe();
  }

  // The model that an adapter belongs to, if it is listed; else the adapter stands for itself.
  #parent(model) {
    const listed = this.#known.some((other) => other.id === model.parent && other.id !== model.id && !other.parent);
    return listed ? model.parent : null;
  }

  #option(model) {
    const base = this.#parent(model);
    return el("option", { value: model.id }, base ? t("adapterOf", { name: model.id, base }) : model.id);
  }

  #describe() {
    const model = this.#known.find((one) => one.id === settings.model);
    $("welcome-title").textContent = model ? t("welcome", { name: shortName(model.id) }) : t("welcomeNoModel");
    $("welcome-length").textContent = model?.max_model_len ? t("length", { count: number(model.max_model_len) }) : "";
  }
}

// A model may be called by its folder's path; its last part is enough for a heading.
function shortName(id) {
  return id.split("/").filter(Boolean).at(-1) ?? id;
}
