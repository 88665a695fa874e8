// Pictures and videos: from files to what is sent.

import { newId } from "./store.js";

const MAX_SIDE = 4096;  // pixels; larger pictures are scaled down, as every model does anyway
const MAX_BYTES = 6 * 2 ** 20;  // of a picture that is sent as it is
const PLAIN_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const VIDEO_NAMES = /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|ogv)$/i;
// A body of 64 MiB, the server's default limit, holds three quarters of that as base64.
export const LARGE = 44 * 2 ** 20;
export const ACCEPT = "image/*,video/*,.mkv,.avi";

export class MediaError extends Error {}

export function kindOf(file) {
  if (file.type.startsWith("image/")) return "image";
  return file.type.startsWith("video/") || VIDEO_NAMES.test(file.name ?? "") ? "video" : null;
}

// {item, blob} of a file. Raises MediaError, whose message is a key of the page's words.
export async function readFile(file) {
  const kind = kindOf(file);
  if (kind === null) throw new MediaError("notMedia");
  const held = await copied(file);
  if (kind === "video") return itemOf(file, held, "video", {});
  const picture = await decoded(held);
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (!width || !height) throw new MediaError("unreadable");
  const fits = Math.max(width, height) <= MAX_SIDE && file.size <= MAX_BYTES;
  if (fits && PLAIN_TYPES.includes(file.type)) return itemOf(file, held, "image", { width, height });
  return smaller(file, picture);
}

// A browser refuses to read a chosen file that was written to afterwards; what was attached is what is sent.
async function copied(file) {
  try {
    return new Blob([await file.arrayBuffer()], { type: file.type });
  } catch {
    throw new MediaError("unreadable");
  }
}

function itemOf(file, blob, kind, more) {
  const type = blob.type || (kind === "video" ? "video/mp4" : "image/png");
  const name = file.name || (kind === "video" ? "video" : "picture");
  return { item: { id: newId(), kind, name, type, size: blob.size, ...more }, blob };
}

async function decoded(blob) {
  const address = URL.createObjectURL(blob);
  const picture = new Image();
  picture.src = address;
  try {
    await picture.decode();
  } catch {
    throw new MediaError("unreadable");
  } finally {
    URL.revokeObjectURL(address);
  }
  return picture;
}

async function smaller(file, picture) {
  const scale = Math.min(1, MAX_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight));
  const width = Math.max(1, Math.round(picture.naturalWidth * scale));
  const height = Math.max(1, Math.round(picture.naturalHeight * scale));
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").drawImage(picture, 0, 0, width, height);
  return itemOf(file, await encoded(canvas), "image", { width, height });
}

// A white ground, because JPEG has no transparency and would show black.
export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  return canvas;
}

export function encoded(canvas) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new MediaError("unreadable"))), "image/jpeg", 0.92);
  });
}

// The bytes of media by id: what is on the page from memory, the rest from the store.
export class Shelf {
  #store;
  #blobs = new Map();
  #addresses = new Map();
  #kept = new Set();

  constructor(store) {
    this.#store = store;
  }

  // Kept in memory at once; in the store when the message is sent.
  add(id, blob) {
    this.#blobs.set(id, blob);
  }

  async keep(id) {
    await this.#store.putMedia(id, await this.blob(id));
    this.#kept.add(id);
  }

  async blob(id) {
    if (!this.#blobs.has(id)) {
      const blob = await this.#store.media(id);
      if (blob) {
        this.#blobs.set(id, blob);
        this.#kept.add(id);
      }
    }
    return this.#blobs.get(id);
  }

  // An address for <img> and <video>; "" if the bytes are gone.
  async address(id) {
    const blob = await this.blob(id);
    if (!blob) return "";
    if (!this.#addresses.has(id)) this.#addresses.set(id, URL.createObjectURL(blob));
    return this.#addresses.get(id);
  }

  async dataUrl(item) {
    const blob = await this.blob(item.id);
    if (!blob) throw new MediaError("gone");
    const typed = blob.type ? blob : new Blob([blob], { type: item.type });
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new MediaError("unreadable"));
      reader.readAsDataURL(typed);
    });
  }

  // Forget what is not shown any more and can be read again: not what a user has just attached.
  release(shown) {
    for (const id of this.#kept) {
      if (shown.has(id)) continue;
      URL.revokeObjectURL(this.#addresses.get(id));
      this.#addresses.delete(id);
      this.#blobs.delete(id);
      this.#kept.delete(id);
    }
  }
}
