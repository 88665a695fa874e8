// Markdown inside a line: code, emphasis, links. Makes nodes; what is not understood stays as text.

import { el } from "./dom.js";

const MAX_DEPTH = 6;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const LABEL = /\[((?:[^[\]\\\n]|\\.|\[[^[\]\n]{0,200}\]){0,500})\]/;
const ADDRESS = /<?([^\s<>()]{0,2000}(?:\([^\s()]{0,200}\)[^\s<>()]{0,500})?)>?/;
const TITLE = /(?:\s+["'][^"'\n]{0,200}["'])?/;
const LINK = new RegExp(`^${LABEL.source}\\(\\s*${ADDRESS.source}${TITLE.source}\\s*\\)`);

export function inline(text, depth = 0) {
  return new Scanner(text, depth).nodes();
}

// The address if a link may lead there, else null: a model's answer must not run anything (javascript:, data:).
export function safeAddress(address) {
  try {
    const { protocol, href } = new URL(address);
    return protocol === "http:" || protocol === "https:" ? href : null;
  } catch {
    return null;
  }
}

class Scanner {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.plain = "";
    this.out = [];
    this.unclosed = new Set();  // marks that no later text closes: each is looked for once, so time stays linear
  }

  nodes() {
    while (this.at < this.text.length) {
      const step = this.special();
      if (step === null) this.plain += this.text[this.at++];
    }
    this.flush();
    return this.out;
  }

  // Handle what stands at `at` if it is special; null if it is plain.
  special() {
    const { text, at } = this;
    switch (text[at]) {
      case "\\":
        return this.escape();
      case "`":
        return this.code();
      case "*":
      case "_":
      case "~":
        return this.emphasis();
      case "[":
        return this.link(at, false);
      case "!":
        return text[at + 1] === "[" ? this.link(at + 1, true) : null;
      case "<":
        return this.angled();
      case "h":
        return this.bare();
      case "\n":
        this.plain = this.plain.replace(/ +$/, "");
        return this.push(el("br"), at + 1);
      default:
        return null;
    }
  }

  flush() {
    if (this.plain) this.out.push(document.createTextNode(this.plain));
    this.plain = "";
  }

  push(node, next) {
    this.flush();
    this.out.push(node);
    this.at = next;
    return true;
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.push(el("br"), this.at + 2);
    if (next === undefined || !PUNCTUATION.test(next)) return null;
    this.plain += next;
    this.at += 2;
    return true;
  }

  code() {
    const ticks = /^`+/.exec(this.text.slice(this.at, this.at + 32))[0];
    const start = this.at + ticks.length;
    const end = this.unclosed.has(ticks) ? -1 : this.closing(ticks, start, (i) => this.isRun(ticks, i));
    if (end < 0) {
      this.plain += ticks;
      this.at = start;
      return true;
    }
    let inner = this.text.slice(start, end).replaceAll("\n", " ");
    if (/^ .* $/.test(inner) && inner.trim()) inner = inner.slice(1, -1);
    return this.push(el("code", {}, inner), end + ticks.length);
  }

  isRun(mark, i) {
    return this.text[i - 1] !== mark[0] && this.text[i + mark.length] !== mark[0];
  }

  emphasis() {
    const { text, at } = this;
    const sign = text[at];
    let length = 1;
    while (text[at + length] === sign && length < 3) length += 1;
    if (sign === "~" && length !== 2) return null;
    const before = text[at - 1] ?? " ";
    const after = text[at + length] ?? " ";
    const opens = !/\s/.test(after) && !(sign === "_" && WORD.test(before));
    const mark = sign.repeat(length);
    const may = opens && this.depth < MAX_DEPTH && !this.unclosed.has(mark);
    const end = may ? this.closing(mark, at + length, (i) => this.closes(mark, i)) : -1;
    if (end < 0) {
      this.plain += mark;
      this.at += length;
      return true;
    }
    const children = inline(text.slice(at + length, end), this.depth + 1);
    return this.push(this.wrapped(mark, children), end + length);
  }

  wrapped(mark, children) {
    if (mark[0] === "~") return el("del", {}, ...children);
    if (mark.length === 1) return el("em", {}, ...children);
    if (mark.length === 2) return el("strong", {}, ...children);
    return el("em", {}, el("strong", {}, ...children));
  }

  closes(mark, i) {
    const { text } = this;
    let [start, end] = [i, i + mark.length];
    while (text[start - 1] === mark[0] && end - start < 4) start -= 1;
    while (text[end] === mark[0] && end - start < 4) end += 1;
    if (/[\s\\]/.test(text[start - 1])) return false;
    if (mark[0] === "_" && WORD.test(text[end] ?? " ")) return false;
    // The *** of "**a *b***" ends both: the inner mark first, so the outer one is the last part of it.
    return end - start === mark.length || (end - start === 3 && i + mark.length === end);
  }

  // Where `mark` closes, or -1, which is remembered.
  closing(mark, from, accepts) {
    for (let i = this.text.indexOf(mark, from); i >= 0; i = this.text.indexOf(mark, i + 1)) {
      if (i > from && accepts(i)) return i;
    }
    this.unclosed.add(mark);
    return -1;
  }

  // [text](address "title"); a picture becomes a link too, since the page loads nothing from elsewhere.
  link(at, picture) {
    if (this.depth >= MAX_DEPTH) return null;
    const found = LINK.exec(this.text.slice(at, at + 3500));
    if (!found) return null;
    const [whole, label, address] = found;
    const children = picture ? [label || address] : inline(label, this.depth + 2);
    return this.push(this.anchor(address, children), at + whole.length);
  }

  anchor(address, children) {
    const href = safeAddress(address);
    if (href === null) return el("span", {}, ...children);
    return el("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...children);
  }

  angled() {
    const rest = this.text.slice(this.at, this.at + 2000);
    const link = /^<(https?:\/\/[^\s<>]+)>/.exec(rest);
    if (link) return this.push(this.anchor(link[1], [link[1]]), this.at + link[0].length);
    const line = /^<br\s*\/?>/i.exec(rest);  // models write it in cells of tables
    return line && this.push(el("br"), this.at + line[0].length);
  }

  bare() {
    if (WORD.test(this.text[this.at - 1] ?? " ")) return null;
    const found = /^https?:\/\/[^\s<>"'`|（）「」，。；！？、]+/.exec(this.text.slice(this.at, this.at + 2000));
    if (!found) return null;
    let address = found[0].replace(/[.,;:!?*_~'\]]+$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.replace(/\)+$/, "");
    return safeAddress(address) === null ? null : this.push(this.anchor(address, [address]), this.at + address.length);
  }
}
