// Conversations in the browser: IndexedDB, because pictures are large; memory where the browser forbids it.
//
// A conversation is {id, title, created, updated, system, messages}; a message {id, role, text, media, ...}; an item
// of media {id, kind, name, type, size}. The bytes of media are kept apart, so that saving a text writes no picture.

const DATABASE = "sightline";

export async function openStore() {
  try {
    return new BrowserStore(await opened());
  } catch {
    return new MemoryStore();
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open(DATABASE, 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("conversations", { keyPath: "id" });
      asked.result.createObjectStore("media");
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
    asked.onblocked = () => reject(new Error("blocked"));
  });
}

class BrowserStore {
  keeps = true;
  #database;

  constructor(database) {
    this.#database = database;
    database.onversionchange = () => database.close();
  }

  #run(stores, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(stores, mode);
      const asked = work(...stores.map((name) => transaction.objectStore(name)));
      transaction.oncomplete = () => resolve(asked?.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  all() {
    return this.#run(["conversations"], "readonly", (store) => store.getAll());
  }

  get(id) {
    return this.#run(["conversations"], "readonly", (store) => store.get(id));
  }

  put(conversation) {
    return this.#run(["conversations"], "readwrite", (store) => store.put(conversation));
  }

  media(id) {
    return this.#run(["media"], "readonly", (store) => store.get(id));
  }

  putMedia(id, blob) {
    return this.#run(["media"], "readwrite", (store) => store.put(blob, id));
  }

  // `media` are the ids of what no message shows any more.
  dropMedia(media) {
    return this.#run(["media"], "readwrite", (store) => media.forEach((id) => store.delete(id)));
  }

  remove(conversation) {
    return this.#run(["conversations", "media"], "readwrite", (store, blobs) => {
      store.delete(conversation.id);
      for (const item of mediaOf(conversation)) blobs.delete(item.id);
    });
  }

  clear() {
    return this.#run(["conversations", "media"], "readwrite", (store, blobs) => {
      store.clear();
      blobs.clear();
    });
  }
}

class MemoryStore {
  keeps = false;
  #conversations = new Map();
  #media = new Map();

  async all() {
    return [...this.#conversations.values()].map((one) => structuredClone(one));
  }

  async get(id) {
    return structuredClone(this.#conversations.get(id));
  }

  async put(conversation) {
    this.#conversations.set(conversation.id, structuredClone(conversation));
  }

  async media(id) {
    return this.#media.get(id);
  }

  async putMedia(id, blob) {
    this.#media.set(id, blob);
  }

  async dropMedia(media) {
    media.forEach((id) => this.#media.delete(id));
  }

  async remove(conversation) {
    this.#conversations.delete(conversation.id);
    await this.dropMedia(mediaOf(conversation).map((item) => item.id));
  }

  async clear() {
    this.#conversations.clear();
    this.#media.clear();
  }
}

export function mediaOf(conversation) {
  return conversation.messages.flatMap((message) => message.media ?? []);
}

// Unlike crypto.randomUUID this also exists on pages served without TLS.
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
