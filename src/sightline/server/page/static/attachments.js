// Pictures and videos as small tiles: in the composer and while editing with a way to remove them, in messages not.

import { bytes, el, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./i18n.js";
import { lightbox } from "./dialogs.js";

export function tile(item, shelf, { onremove = null, large = false } = {}) {
  const label = item.width ? `${item.name}, ${item.width} × ${item.height}` : item.name;
  const face = item.kind === "video" ? videoFace(item, shelf, large) : pictureFace(item, shelf, label);
  const removing = { class: "tile-remove", "aria-label": t("removeNamed", { name: item.name }) };
  const remove = onremove && iconButton("close", "remove", onremove, removing);
  const size = !large && el("span", { class: "tile-size" }, bytes(item.size));
  return el("div", { class: `tile ${item.kind}`, role: "listitem" }, face, size || null, remove);
}

function pictureFace(item, shelf, label) {
  const picture = el("img", { alt: label, decoding: "async" });
  if (item.width) {
    picture.width = item.width;
    picture.height = item.height;
  }
  fill(picture, item, shelf);
  const given = { type: "button", class: "tile-face", "aria-label": t("enlarge", { name: label }) };
  return el("button", { ...given, onclick: () => lightbox(picture.src, label) }, picture);
}

function videoFace(item, shelf, large) {
  const film = el("video", { preload: "metadata", "aria-label": item.name, controls: large, ".muted": true, playsinline: true });
  fill(film, item, shelf);
  if (large) {
    film.addEventListener("error", () => film.replaceWith(unplayable(item)));
    return film;
  }
  // Above the film, and all there is if the browser cannot play its format.
  return el("div", { class: "tile-face" }, film, icon("film"));
}

function unplayable(item) {
  const words = el("span", {}, el("b", {}, item.name), el("span", { class: "hint" }, `${bytes(item.size)}. ${t("unplayable")}`));
  return el("div", { class: "unplayable" }, icon("film"), words);
}

async function fill(node, item, shelf) {
  const address = await shelf.address(item.id);
  if (address) node.src = address;
  else node.alt = t("gone");
}

// The tiles of media that are being collected.
export class Attachments {
  items = [];

  constructor(node, shelf, onchange = () => {}) {
    this.node = node;
    this.shelf = shelf;
    this.onchange = onchange;
  }

  set(items) {
    this.items = items;
    this.draw();
  }

  add(item, blob) {
    this.shelf.add(item.id, blob);
    this.set([...this.items, item]);
  }

  draw() {
    const remove = (item) => {
      this.set(this.items.filter((other) => other !== item));
      this.node.closest("form")?.querySelector("textarea")?.focus();
    };
    this.node.hidden = this.items.length === 0;
    this.node.replaceChildren(...this.items.map((item) => tile(item, this.shelf, { onremove: () => remove(item) })));
    this.onchange(this.items);
  }
}
