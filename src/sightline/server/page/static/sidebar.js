// The list of conversations; on a phone a drawer above the page.

import { $, el, iconButton, toast } from "./dom.js";
import { t } from "./i18n.js";

export class Sidebar {
  #list = $("conversations");
  #drawing = 0;

  constructor(chat, store) {
    this.chat = chat;
    this.store = store;
    for (const name of ["list", "open", "running"]) chat.addEventListener(name, () => this.draw());
    $("open-sidebar").addEventListener("click", () => this.#toggle(true));
    $("close-sidebar").addEventListener("click", () => this.#toggle(false));
    $("shade").addEventListener("click", () => this.#toggle(false));
    $("new").addEventListener("click", () => this.begin());
    // Before the page's own listener, which stops an answer.
    document.addEventListener("keydown", (event) => this.#key(event), { capture: true });
    matchMedia("(min-width: 801px)").addEventListener("change", () => this.#toggle(false, false));
  }

  get isOpen() {
    return document.body.classList.contains("drawer");
  }

  #key(event) {
    if (event.key !== "Escape" || !this.isOpen || event.target.matches("#conversations input")) return;
    event.stopPropagation();
    this.#toggle(false);
  }

  begin() {
    this.chat.start();
    this.#toggle(false, false);
    $("field").focus();
  }

  #toggle(open, moveFocus = true) {
    if (open === this.isOpen) return;
    document.body.classList.toggle("drawer", open);
    $("main").inert = open;
    $("open-sidebar").setAttribute("aria-expanded", String(open));
    if (moveFocus) $(open ? "close-sidebar" : "open-sidebar").focus();
  }

  async draw() {
    const drawing = (this.#drawing += 1);
    const all = (await this.store.all()).sort((a, b) => b.updated - a.updated);
    // A later change may have been drawn already.
    if (drawing !== this.#drawing || this.#list.querySelector("form")) return;
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    this.#list.replaceChildren(...all.map((one) => this.#row(one)));
    $("no-conversations").hidden = all.length > 0;
    if (focused) this.#list.querySelector(`[data-id="${focused}"] .open`)?.focus();
  }

  #row(conversation) {
    const { id } = conversation;
    const title = conversation.title || t("untitled");
    const current = id === this.chat.conversation.id;
    const given = { type: "button", class: "open", "aria-current": current ? "true" : null, title };
    const open = el("button", { ...given, onclick: () => this.#open(id) }, title);
    const row = el(
      "li",
      { "data-id": id, class: current ? "current" : "" },
      open,
      iconButton("edit", "rename", () => this.#rename(row, conversation), { "aria-label": t("renameNamed", { name: title }) }),
      iconButton("trash", "delete", () => this.#remove(row, id), { "aria-label": t("removeNamed", { name: title }) }),
    );
    return row;
  }

  async #open(id) {
    if (id !== this.chat.conversation.id && !(await this.chat.open(id))) await this.draw();
    this.#toggle(false);
  }

  #rename(row, conversation) {
    const field = el("input", { type: "text", maxlength: "120", "aria-label": t("rename"), ".value": conversation.title });
    let done = false;
    const finish = async (keep) => {
      if (done) return;
      done = true;
      const title = field.value.trim();
      row.replaceChildren();
      if (keep && title) await this.chat.rename(conversation.id, title);
      await this.draw();
      this.#list.querySelector(`[data-id="${conversation.id}"] .open`)?.focus();
    };
    const form = el("form", { onsubmit: (event) => { event.preventDefault(); finish(true); } }, field);
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      finish(false);
    });
    field.addEventListener("blur", () => finish(true));
    row.replaceChildren(form);
    field.select();
  }

  async #remove(row, id) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    const undo = await this.chat.remove(id);
    await this.draw();
    (next ? this.#list.querySelector(`[data-id="${next.dataset.id}"] .open`) : $("new"))?.focus();
    toast(t("conversationRemoved"), { label: t("undo"), run: undo });
  }
}
