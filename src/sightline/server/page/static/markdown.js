// Markdown as nodes, updated while text streams in: only the blocks that changed are made anew.

import { blocksOf } from "./blocks.js";
import { copyFrom, el, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 8;

export class MarkdownView {
  #blocks = [];
  #nodes = [];

  constructor() {
    this.node = el("div", { class: "markdown" });
  }

  update(text) {
    const blocks = blocksOf(text);
    blocks.forEach((block, i) => {
      const before = this.#blocks[i];
      if (before?.source === block.source && before.kind === block.kind) return;
      if (before && extendsCode(before, block)) {
        this.#nodes[i].querySelector("code").textContent = block.text;
        return;
      }
      const node = nodeOf(block, 0);
      if (this.#nodes[i]) this.#nodes[i].replaceWith(node);
      else this.node.append(node);
      this.#nodes[i] = node;
    });
    for (const node of this.#nodes.splice(blocks.length)) node.remove();
    this.#blocks = blocks;
  }
}

// Code keeps its node while it grows, so that a selection and the focus of its button stay.
function extendsCode(before, block) {
  return before.kind === "code" && block.kind === "code" && before.name === block.name;
}

function children(text, depth) {
  if (depth >= MAX_DEPTH) return [el("p", {}, text)];
  return blocksOf(text).map((block) => nodeOf(block, depth + 1));
}

const MAKERS = {
  paragraph: (block) => el("p", {}, ...inline(block.text)),
  // The page has its own first and second headings, so an answer's begin at the third.
  heading: (block) => el(`h${Math.min(6, block.level + 2)}`, { class: `level-${block.level}` }, ...inline(block.text)),
  rule: () => el("hr"),
  quote: (block, depth) => el("blockquote", {}, ...children(block.text, depth)),
  code: codeNode,
  list: listNode,
  table: tableNode,
};

function nodeOf(block, depth) {
  return MAKERS[block.kind](block, depth);
}

function codeNode(block) {
  const code = el("code", {}, block.text);
  const copy = iconButton("copy", "copyCode", () => copyFrom(copy, code.textContent));
  const label = block.name || t("code");
  return el(
    "div",
    { class: "code" },
    el("div", { class: "code-head" }, el("span", {}, label), copy),
    el("pre", { tabindex: "0", role: "region", "aria-label": label }, code),
  );
}

function listNode(block, depth) {
  const items = block.items.map((item) => listItem(item, block.loose, depth));
  const start = block.ordered && block.start !== 1 ? String(block.start) : undefined;
  return el(block.ordered ? "ol" : "ul", { start }, ...items);
}

function listItem(text, loose, depth) {
  const task = /^\[([ xX])\]\s+/.exec(text);
  const made = children(task ? text.slice(task[0].length) : text, depth);
  // In a tight list the words of an item are no paragraph of their own.
  const inner = loose ? made : made.flatMap((node) => (node.tagName === "P" ? [...node.childNodes] : [node]));
  if (!task) return el("li", {}, ...inner);
  const done = task[1] !== " ";
  const box = { class: done ? "box done" : "box", role: "img", "aria-label": t(done ? "done" : "open") };
  return el("li", { class: "task" }, el("span", box), ...inner);
}

function tableNode(block) {
  const cell = (tag, text, i) => el(tag, { class: block.aligns[i] }, ...inline(text));
  const head = el("tr", {}, ...block.head.map((text, i) => cell("th", text, i)));
  const rows = block.rows.map((row) => el("tr", {}, ...row.map((text, i) => cell("td", text, i))));
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": t("table") }, table);
}
