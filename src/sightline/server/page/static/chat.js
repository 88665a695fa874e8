// The conversation that is open, and the answers that are being written. Knows nothing of the page's nodes: it says
// what changed by events ("sync": messages came or went; "message": one changed; "list": titles; "running").

import { ServerError, streamChat } from "./api.js";
import { MediaError } from "./media.js";
import { sampling, settings } from "./settings.js";
import { mediaOf, newId } from "./store.js";

const SAVE_EVERY = 1500;  // milliseconds, while an answer streams
const UNDO_FOR = 10_000;  // milliseconds until the pictures of a removed question are forgotten

export class Chat extends EventTarget {
  #store;
  #shelf;
  #runs = new Map();  // by conversation: {conversation, message, controller}
  #gone = new Set();  // removed conversations, which an answer that is just ending must not save again

  constructor(store, shelf) {
    super();
    this.#store = store;
    this.#shelf = shelf;
    this.conversation = empty();
  }

  get running() {
    return this.#runs.has(this.conversation.id);
  }

  get messages() {
    return this.conversation.messages;
  }

  start() {
    this.#show(empty());
  }

  async open(id) {
    // One that is being answered lives in memory, ahead of the store.
    const found = this.#runs.get(id)?.conversation ?? (await this.#store.get(id));
    if (found) this.#show(withoutOpenAnswers(found, this.#runs.has(id)));
    return found !== undefined;
  }

  #show(conversation) {
    this.conversation = conversation;
    this.#shelf.release(new Set(mediaOf(conversation).map((item) => item.id)));
    this.#tell("open");
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  setSystem(text) {
    this.conversation.system = text;
    if (this.messages.length) this.save();
  }

  // A question, and its answer.
  async send(text, media) {
    if (this.running) return;
    const { conversation } = this;
    if (!this.messages.length) conversation.title = titleOf(text, media);
    this.messages.push({ id: newId(), role: "user", text, media });
    await this.#answer(conversation);
  }

  // Answer the last question anew.
  async regenerate() {
    if (this.running || !this.messages.length) return;
    if (this.messages.at(-1).role === "assistant") this.messages.pop();
    await this.#answer(this.conversation);
  }

  // Another wording of an earlier question: what followed it goes.
  async edit(message, text, media) {
    if (this.running) return;
    const at = this.messages.indexOf(message);
    const before = mediaOf(this.conversation);
    this.messages.splice(at);
    if (at === 0) this.conversation.title = titleOf(text, media);
    this.messages.push({ id: newId(), role: "user", text, media });
    this.#dropUnused(before);
    await this.#answer(this.conversation);
  }

  // Take a question and its answer out; returns how to undo that.
  async removePair(message) {
    const { conversation } = this;
    const at = this.messages.indexOf(message);
    const count = this.messages[at + 1]?.role === "assistant" ? 2 : 1;
    if (this.#runs.get(conversation.id)?.message === this.messages[at + count - 1]) this.stop();
    const before = mediaOf(conversation);
    const removed = this.messages.splice(at, count);
    await this.save();
    this.#tell("sync");
    const forget = setTimeout(() => this.#dropUnused(before, conversation), UNDO_FOR);
    return async () => {
      clearTimeout(forget);
      conversation.messages.splice(at, 0, ...removed);
      await this.save(conversation);
      if (conversation === this.conversation) this.#tell("sync");
    };
  }

  stop() {
    this.#runs.get(this.conversation.id)?.controller.abort();
  }

  async rename(id, title) {
    const conversation = await this.#known(id);
    conversation.title = title;
    await this.save(conversation);
  }

  // Returns how to undo the removal.
  async remove(id) {
    const conversation = await this.#known(id);
    this.#gone.add(id);
    this.#runs.get(id)?.controller.abort();
    const blobs = await Promise.all(mediaOf(conversation).map(async (item) => [item.id, await this.#shelf.blob(item.id)]));
    await this.#store.remove(conversation);
    if (id === this.conversation.id) this.start();
    this.#tell("list");
    return async () => {
      this.#gone.delete(id);
      await Promise.all(blobs.filter(([, blob]) => blob).map(([key, blob]) => this.#store.putMedia(key, blob)));
      await this.save(conversation);
    };
  }

  async removeAll() {
    for (const [id, run] of this.#runs) {
      this.#gone.add(id);
      run.controller.abort();
    }
    await this.#store.clear();
    this.start();
    this.#tell("list");
  }

  // A conversation from a file.
  async adopt(conversation) {
    await Promise.all(mediaOf(conversation).map((item) => this.#shelf.keep(item.id)));
    await this.save(conversation);
    this.#show(conversation);
  }

  async #known(id) {
    if (id === this.conversation.id) return this.conversation;
    return this.#runs.get(id)?.conversation ?? (await this.#store.get(id));
  }

  async save(conversation = this.conversation) {
    if (this.#gone.has(conversation.id)) return;
    conversation.updated = Date.now();
    try {
      await this.#store.put(conversation);
    } catch {
      this.#tell("unsaved");  // the disk is full, or the browser allows no more
    }
    this.#tell("list");
  }

  #dropUnused(before, conversation = this.conversation) {
    const used = new Set(mediaOf(conversation).map((item) => item.id));
    this.#store.dropMedia(before.map((item) => item.id).filter((id) => !used.has(id))).catch(() => {});
  }

  async #answer(conversation) {
    const message = { id: newId(), role: "assistant", text: "", model: settings.model, state: "waiting" };
    const controller = new AbortController();
    conversation.messages.push(message);
    this.#runs.set(conversation.id, { conversation, message, controller });
    this.#tell("sync");
    this.#tell("running");
    try {
      await this.#keepMedia(conversation);
      await this.save(conversation);
      await this.#stream(conversation, message, controller.signal);
      message.state = "done";
    } catch (error) {
      fail(message, error);
    }
    this.#runs.delete(conversation.id);
    this.#tell("message", message);
    this.#tell("running");
    if (conversation.messages.includes(message)) await this.save(conversation);
  }

  async #keepMedia(conversation) {
    for (const item of mediaOf(conversation)) {
      if (item.kept) continue;
      await this.#shelf.keep(item.id).catch(() => this.#tell("unsaved"));
      item.kept = true;
    }
  }

  async #stream(conversation, message, signal) {
    const body = await this.request(conversation, conversation.messages.indexOf(message));
    const clock = { asked: performance.now(), first: null };
    let saved = clock.asked;
    for await (const chunk of streamChat(body, { key: settings.key, signal })) {
      if (signal.aborted) break;
      readChunk(message, chunk, clock);
      this.#tell("message", message);
      if (performance.now() - saved > SAVE_EVERY) {
        saved = performance.now();
        this.#store.put(conversation).catch(() => {});
      }
    }
    signal.throwIfAborted();
  }

  // The body of a request for the answer that stands at `end`.
  async request(conversation, end) {
    const messages = [];
    if (conversation.system?.trim()) messages.push({ role: "system", content: conversation.system });
    for (const message of conversation.messages.slice(0, end)) {
      // An answer that failed before its first word is nothing the model said.
      if (message.role === "assistant" && !message.text) continue;
      messages.push({ role: message.role, content: await this.#content(message) });
    }
    return { ...(settings.model ? { model: settings.model } : {}), messages, ...sampling() };
  }

  async #content(message) {
    if (!message.media?.length) return message.text;
    const parts = [];
    for (const item of message.media) {
      const type = `${item.kind}_url`;
      parts.push({ type, [type]: { url: await this.#shelf.dataUrl(item) } });
    }
    return message.text ? [...parts, { type: "text", text: message.text }] : parts;
  }
}

function readChunk(message, chunk, clock) {
  const now = performance.now();
  const choice = chunk.choices?.[0];
  const text = choice?.delta?.content;
  const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
  if (chunk.model) message.model = chunk.model;
  if (thought) message.thought = (message.thought ?? "") + thought;
  if (text || thought) {
    clock.first ??= now;
    message.state = "writing";
  }
  if (text) message.text += text;
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (chunk.usage) message.usage = chunk.usage;
  if (chunk.timings) message.timings = chunk.timings;
  message.measured = { first: clock.first && (clock.first - clock.asked) / 1000, total: (now - clock.asked) / 1000 };
}

function fail(message, error) {
  if (error.name === "AbortError") {
    message.state = "stopped";
    return;
  }
  message.state = "failed";
  if (error instanceof ServerError) {
    const { kind, wait, status } = error;
    message.error = { kind, text: error.message, wait, status };
  } else if (error instanceof MediaError) {
    message.error = { kind: "media", text: error.message };
  } else {
    message.error = { kind: "page", text: String(error.message ?? error) };
    console.error(error);
  }
}

// After a reload nobody writes an answer that was being written.
function withoutOpenAnswers(conversation, running) {
  if (!running) {
    for (const message of conversation.messages) {
      if (message.state === "waiting" || message.state === "writing") message.state = "stopped";
    }
  }
  return conversation;
}

export function empty() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system: settings.system, messages: [] };
}

function titleOf(text, media) {
  const letters = [...text.trim().split("\n", 1)[0]];  // whole characters, not halves of one
  return letters.length > 60 ? `${letters.slice(0, 59).join("")}…` : letters.join("") || media[0]?.name || "";
}
