// What opens above the page: a picture in full size, the camera, a question for a name.

import { $ } from "./dom.js";
import { t } from "./i18n.js";
import { canvasOf, encoded } from "./media.js";

// Close by the buttons that are marked so, and by a click beside the dialog. Esc and the focus are the browser's.
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    });
  }
}

export function lightbox(address, label) {
  const dialog = $("lightbox");
  const picture = $("lightbox-picture");
  picture.src = address;
  picture.alt = label;
  $("lightbox-label").textContent = label;
  dialog.showModal();
}

// Shows the camera's picture; `onpicture(file)` gets what is taken.
export class Camera {
  #dialog = $("camera");
  #film = $("camera-film");
  #note = $("camera-note");
  #stream = null;
  #facing = "environment";
  #asked = 0;

  constructor(onpicture) {
    this.onpicture = onpicture;
    this.#dialog.addEventListener("close", () => this.#end());
    $("camera-take").addEventListener("click", () => this.#take());
    $("camera-flip").addEventListener("click", () => {
      this.#facing = this.#facing === "user" ? "environment" : "user";
      this.#start();
    });
  }

  open() {
    this.#dialog.showModal();
    this.#start();
  }

  async #start() {
    this.#end();
    const asked = (this.#asked += 1);
    $("camera-take").disabled = true;
    this.#note.textContent = t("cameraStarting");
    try {
      // Browsers give no camera to pages that come over plain HTTP from another machine.
      if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: this.#facing, width: { ideal: 1920 } } });
      if (asked !== this.#asked || !this.#dialog.open) {
        stream.getTracks().forEach((track) => track.stop());
        return;
      }
      this.#stream = stream;
      this.#film.srcObject = stream;
      await this.#film.play();
      this.#note.textContent = "";
      $("camera-take").disabled = false;
      $("camera-take").focus();
      const devices = await navigator.mediaDevices.enumerateDevices();
      $("camera-flip").hidden = devices.filter((device) => device.kind === "videoinput").length < 2;
    } catch (error) {
      if (asked === this.#asked && this.#dialog.open) this.#note.textContent = t(reasons[error.name] ?? "cameraFailed");
    }
  }

  async #take() {
    const { videoWidth: width, videoHeight: height } = this.#film;
    if (!width) return;
    const canvas = canvasOf(width, height);
    canvas.getContext("2d").drawImage(this.#film, 0, 0);
    const blob = await encoded(canvas);
    this.#dialog.close();
    this.onpicture(new File([blob], `${t("photo")}.jpg`, { type: "image/jpeg" }));
  }

  // The light of the camera goes out.
  #end() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#film.srcObject = null;
  }
}

const reasons = {
  NotAllowedError: "cameraRefused",
  NotFoundError: "cameraNone",
  NotReadableError: "cameraBusy",
  SecurityError: "cameraInsecure",
};

// Asks for the API key; resolves to it, or to null.
export function askKey(current) {
  const dialog = $("key-dialog");
  const field = $("key-field");
  field.value = current;
  dialog.returnValue = "";
  dialog.showModal();
  field.focus(); // the browser takes the first button, which closes
  return new Promise((resolve) => {
    const form = $("key-form");
    const submit = (event) => {
      event.preventDefault();
      dialog.close("given");
    };
    form.addEventListener("submit", submit);
    dialog.addEventListener("close", () => {
      form.removeEventListener("submit", submit);
      resolve(dialog.returnValue === "given" ? field.value.trim() : null);
    }, { once: true });
  });
}

export function dialogOpen() {
  return document.querySelector("dialog[open]") !== null;
}
