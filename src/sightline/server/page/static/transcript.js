// The messages of the open conversation, and the scrolling that follows an answer as long as nobody scrolls up.

import { $, announce } from "./dom.js";
import { t } from "./i18n.js";
import { messageView } from "./message.js";

const NEAR = 60;  // pixels from the end that count as the end
const SPEAK_EVERY = 3000;  // milliseconds between two announcements of a streamed answer

export class Transcript {
  #views = new Map();
  #list = $("messages");
  #scroller = $("scroller");
  #jump = $("jump");
  #follows = true;
  #changed = new Set();
  #frame = 0;
  #top = 0;

  constructor(chat, context) {
    this.chat = chat;
    this.context = context;
    this.speaker = new Speaker();
    chat.addEventListener("open", () => this.#reset());
    chat.addEventListener("sync", () => this.#sync());
    chat.addEventListener("running", () => this.#busy());
    chat.addEventListener("message", (event) => this.#mark(event.detail));
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#jump.addEventListener("click", () => this.toEnd(true));
    // Pictures that load, and a window that changes, move the end.
    const watch = new ResizeObserver(() => this.#keepEnd());
    watch.observe(this.#list);
    watch.observe(this.#scroller);
  }

  // Everything anew: another conversation, or another language.
  #reset() {
    this.#views.clear();
    this.#list.replaceChildren();
    this.#follows = true;
    this.#sync();
  }

  redraw() {
    this.#reset();
  }

  #sync() {
    const { messages } = this.chat;
    const kept = new Set(messages);
    for (const [message, view] of this.#views) {
      if (kept.has(message)) continue;
      view.node.remove();
      this.#views.delete(message);
    }
    let before = null;
    for (const message of messages) {
      if (!this.#views.has(message)) this.#views.set(message, messageView(message, this.context));
      const { node } = this.#views.get(message);
      if ((before ? before.nextSibling : this.#list.firstChild) !== node) {
        if (before) before.after(node);
        else this.#list.prepend(node);
      }
      before = node;
    }
    document.body.classList.toggle("empty", messages.length === 0);
    this.#busy();
    this.toEnd(true);
  }

  #busy() {
    const last = this.chat.messages.at(-1);
    for (const [message, view] of this.#views) view.setBusy(this.chat.running, message === last);
  }

  // Chunks come faster than frames; each frame draws what changed once.
  #mark(message) {
    this.speaker.hear(message);
    if (!this.#views.has(message)) return;
    this.#changed.add(message);
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      for (const one of this.#changed) this.#views.get(one)?.update();
      this.#changed.clear();
      this.#busy();
      this.#keepEnd();
    });
  }

  toEnd(always = false) {
    if (always) this.#follows = true;
    this.#keepEnd();
  }

  #keepEnd() {
    // The welcome is read from its beginning.
    if (this.#follows) this.#scroller.scrollTop = this.chat.messages.length ? this.#scroller.scrollHeight : 0;
    this.#top = this.#scroller.scrollTop;
    this.#showJump();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    if (scrollHeight - scrollTop - clientHeight < NEAR && scrollTop >= this.#top) this.#follows = true;
    else if (scrollTop < this.#top - 2) this.#follows = false;
    this.#top = scrollTop;
    this.#showJump();
  }

  #showJump() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    this.#jump.hidden = this.#follows || scrollHeight - scrollTop - clientHeight < NEAR;
  }
}

// Tells screen readers an answer in whole sentences, some at a time: every chunk would drown them.
class Speaker {
  #message = null;
  #said = 0;
  #timer = 0;

  hear(message) {
    if (message !== this.#message) {
      this.#message = message;
      this.#said = 0;
      clearTimeout(this.#timer);
      this.#timer = 0;
    }
    if (message.state === "writing") {
      this.#timer ||= setTimeout(() => this.#say(false), SPEAK_EVERY);
      return;
    }
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (message.state === "stopped") announce(t("stopped"));
    if (message.state === "done") this.#say(true);
  }

  #say(all) {
    this.#timer = 0;
    const rest = this.#message.text.slice(this.#said);
    const whole = all ? rest : (/^[^]*(?:[.!?](?=\s)|[。！？\n])/.exec(rest)?.[0] ?? "");
    if (!whole.trim()) return;
    this.#said += whole.length;
    announce(whole.replace(/[*_`#|>]+/g, " ").trim());
  }
}
