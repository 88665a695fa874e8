// Where one writes: text, pictures and videos by file dialog, drop, paste and camera.

import { Attachments } from "./attachments.js";
import { $, bytes, el, toast } from "./dom.js";
import { Camera } from "./dialogs.js";
import { t } from "./i18n.js";
import { LARGE, MediaError, readFile } from "./media.js";
import { isSend } from "./message.js";

export class Composer {
  #form = $("composer");
  #field = $("field");
  #files = $("files");
  #drop = $("drop");
  #reading = 0;

  constructor(chat, shelf) {
    this.chat = chat;
    this.attached = new Attachments($("attached"), shelf, () => this.#update());
    this.camera = new Camera((file) => this.addFiles([file]));
    this.#form.addEventListener("submit", (event) => this.#submit(event));
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#field.addEventListener("input", () => this.#update());
    $("attach").addEventListener("click", () => this.pick());
    $("open-camera").addEventListener("click", () => this.camera.open());
    $("stop").addEventListener("click", () => chat.stop());
    this.#files.addEventListener("change", () => this.#picked());
    this.#listenToDrops();
    document.addEventListener("paste", (event) => this.#pasted(event));
    chat.addEventListener("running", () => this.#update());
    chat.addEventListener("open", () => this.#update());
    this.#update();
  }

  pick() {
    this.#files.click();
  }

  fill(text) {
    this.#field.value = text;
    this.#update();
    this.focus();
  }

  focus() {
    this.#field.focus();
  }

  async addFiles(files) {
    this.#reading += 1;
    this.#update();
    for (const file of files) {
      try {
        const { item, blob } = await readFile(file);
        this.attached.add(item, blob);
      } catch (error) {
        if (!(error instanceof MediaError)) throw error;
        toast(`${file.name}: ${t(error.message)}`);
      }
    }
    this.#reading -= 1;
    this.#update();
  }

  #submit(event) {
    event.preventDefault();
    if (!this.#sendable()) return;
    const text = this.#field.value.trim();
    const media = this.attached.items;
    this.#field.value = "";
    this.attached.set([]);
    this.chat.send(text, media);
    this.focus();
  }

  #sendable() {
    const { running } = this.chat;
    return !running && this.#reading === 0 && (this.#field.value.trim() !== "" || this.attached.items.length > 0);
  }

  #key(event) {
    if (!isSend(event)) return;
    event.preventDefault();
    this.#form.requestSubmit();
  }

  #picked() {
    this.addFiles([...this.#files.files]);
    this.#files.value = "";
    this.focus();
  }

  #pasted(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || event.target.closest?.("dialog")) return;
    event.preventDefault();
    this.addFiles(files);
    this.focus();
  }

  #listenToDrops() {
    let inside = 0;  // each child that is entered and left says so too
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files") ?? false;
    const show = (shown) => {
      inside = shown;
      this.#drop.hidden = inside === 0;
    };
    window.addEventListener("dragenter", (event) => holdsFiles(event) && show(inside + 1));
    window.addEventListener("dragleave", (event) => holdsFiles(event) && show(Math.max(0, inside - 1)));
    window.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      show(0);
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.addFiles([...event.dataTransfer.files]);
      this.focus();
    });
  }

  #update() {
    const { running } = this.chat;
    $("send").hidden = running;
    $("stop").hidden = !running;
    // Not `disabled`: a disabled button would lose the focus, and with it the way of a keyboard.
    $("send").setAttribute("aria-disabled", String(!this.#sendable()));
    $("reading").hidden = this.#reading === 0;
    this.#warn();
    this.#grow();
  }

  // Videos are sent whole, in one body; a server takes 64 MiB unless it was told otherwise.
  #warn() {
    const sum = this.attached.items.reduce((all, item) => all + item.size, 0);
    const node = $("size-warning");
    node.hidden = sum <= LARGE;
    node.replaceChildren(...(sum > LARGE ? [el("span", {}, t("large", { size: bytes(sum) }))] : []));
  }

  #grow() {
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
  }
}
