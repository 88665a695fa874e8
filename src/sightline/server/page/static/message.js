// One message on the page.

import { Attachments, tile } from "./attachments.js";
import { copyFrom, el, iconButton } from "./dom.js";
import { figuresOf } from "./figures.js";
import { icon } from "./icons.js";
import { t } from "./i18n.js";
import { MarkdownView } from "./markdown.js";

// `actions`: edit(message, text, media), regenerate(), remove(message), retry(message), giveKey().
export function messageView(message, context) {
  return message.role === "user" ? new Question(message, context) : new Answer(message, context);
}

class Question {
  constructor(message, { shelf, actions }) {
    this.message = message;
    this.shelf = shelf;
    this.actions = actions;
    this.node = el("article", { class: "message user", "data-id": message.id });
    this.draw();
  }

  draw() {
    const { message } = this;
    const remove = iconButton("trash", "removePair", () => this.actions.remove(message));
    const copy = iconButton("copy", "copyQuestion", () => copyFrom(copy, message.text));
    this.editButton = iconButton("edit", "edit", () => this.edit());
    this.node.setAttribute("aria-label", t("you"));
    this.node.classList.remove("editing");
    this.node.replaceChildren(
      message.media?.length ? gallery(message.media, this.shelf) : "",
      message.text ? el("div", { class: "bubble" }, message.text) : "",
      el("div", { class: "actions" }, this.editButton, message.text ? copy : null, remove),
    );
  }

  edit() {
    const { message } = this;
    const strip = el("div", { class: "attachments", role: "list", "aria-label": t("attachments") });
    const attached = new Attachments(strip, this.shelf);
    attached.set(message.media ?? []);
    const field = el("textarea", { "aria-label": t("edit"), ".value": message.text, rows: "1" });
    const cancel = () => {
      this.draw();
      this.editButton.focus();
    };
    const form = el(
      "form",
      { class: "edit", onsubmit: (event) => this.resend(event, field.value.trim(), attached.items) },
      strip,
      field,
      el(
        "div",
        { class: "row" },
        el("button", { type: "button", class: "button", onclick: cancel }, t("cancel")),
        el("button", { type: "submit", class: "button primary" }, t("sendAgain")),
      ),
    );
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.target === field && isSend(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.node.classList.add("editing");
    this.node.replaceChildren(form);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  resend(event, text, media) {
    event.preventDefault();
    if (text || media.length) this.actions.edit(this.message, text, media);
  }

  setBusy(busy) {
    this.editButton.disabled = busy;
  }
}

class Answer {
  constructor(message, { actions }) {
    this.message = message;
    this.actions = actions;
    this.markdown = new MarkdownView();
    this.name = el("span", { class: "model" });
    this.thought = el("details", { class: "thought", hidden: true }, el("summary", {}, t("thought")), el("div", {}));
    this.foot = el("div", { class: "foot" });
    this.node = el(
      "article",
      { class: "message assistant", "data-id": message.id, "aria-label": t("answer") },
      this.name,
      this.thought,
      this.markdown.node,
      this.foot,
    );
    this.update();
  }

  update() {
    const { message } = this;
    const open = message.state === "waiting" || message.state === "writing";
    this.name.textContent = message.model || t("answer");
    this.node.classList.toggle("waiting", message.state === "waiting");
    this.node.classList.toggle("writing", message.state === "writing");
    this.node.setAttribute("aria-busy", String(open));
    this.thought.hidden = !message.thought;
    if (message.thought) this.thought.lastChild.textContent = message.thought;
    this.markdown.update(message.text);
    if (!open) this.drawFoot();
  }

  drawFoot() {
    const { message } = this;
    const copy = iconButton("copy", "copyAnswer", () => copyFrom(copy, message.text));
    this.redo = iconButton("redo", "regenerate", () => this.actions.regenerate());
    this.foot.replaceChildren(
      note(message) ?? "",
      message.state === "failed" ? this.problem() : "",
      el("div", { class: "actions" }, message.text ? copy : null, this.redo),
      figuresOf(message) ?? "",
    );
  }

  problem() {
    const { error } = this.message;
    const wait = error.wait ? t("errorWait", { count: error.wait }) : "";
    this.retry = el("button", { type: "button", class: "button", onclick: () => this.actions.retry() }, icon("redo"), t("retry"));
    const given = { type: "button", class: "button primary", onclick: () => this.actions.giveKey() };
    const key = error.kind === "key" ? el("button", given, t("giveKey")) : null;
    return el(
      "div",
      { class: "problem", role: "alert" },
      icon("alert"),
      el(
        "div",
        {},
        el("p", { class: "problem-title" }, t(`error_${error.kind}`) + wait),
        el("p", { class: "problem-text" }, detail(error)),
        el("div", { class: "row" }, key, this.retry),
      ),
    );
  }

  // Only the last answer can be made anew, and not while one is written.
  setBusy(busy, last) {
    if (this.redo) this.redo.hidden = !last || busy || this.message.state === "failed";
    if (this.retry) this.retry.hidden = !last || busy;
  }
}

function gallery(media, shelf) {
  const given = { class: `gallery count-${Math.min(media.length, 4)}`, role: "list", "aria-label": t("attachments") };
  return el("div", given, ...media.map((item) => tile(item, shelf, { large: true })));
}

function detail(error) {
  return error.kind === "media" ? t(error.text) : error.text;
}

function note(message) {
  if (message.state === "stopped") return el("p", { class: "note" }, t("stopped"));
  if (message.finish === "length") return el("p", { class: "note" }, t("tooLong"));
  if (message.state === "done" && !message.text) return el("p", { class: "note" }, t("emptyAnswer"));
  return null;
}

// Enter alone sends; Enter that picks a word of an input method does not (Safari says so by the key's code only).
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}
