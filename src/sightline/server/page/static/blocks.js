// Markdown's blocks: lines of text as a list of {kind, lines, ...}. Nothing is made into nodes here.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*)|\s*)$/;
const SEPARATOR = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

export function blocksOf(text) {
  const lines = text.replaceAll("\t", "    ").split(/\r?\n/);
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at);
    block.source = lines.slice(at, next).join("\n");
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function blockAt(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] ?? "" }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (QUOTE.test(line)) return quote(lines, at);
  if (isItem(line)) return list(lines, at);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at);
}

// An unclosed fence runs to the end: that is what a streamed one looks like.
function fence(lines, at) {
  const [, mark, name] = FENCE.exec(lines[at]);
  const indent = /^ */.exec(lines[at])[0].length;
  let next = at + 1;
  const inner = [];
  while (next < lines.length && !isFenceEnd(lines[next], mark)) {
    inner.push(lines[next].replace(new RegExp(`^ {0,${indent}}`), ""));
    next += 1;
  }
  return [{ kind: "code", name, text: inner.join("\n") }, Math.min(next + 1, lines.length)];
}

function isFenceEnd(line, mark) {
  const found = /^ {0,3}(`{3,}|~{3,})\s*$/.exec(line);
  return found !== null && found[1][0] === mark[0] && found[1].length >= mark.length;
}

function quote(lines, at) {
  let next = at;
  const inner = [];
  while (next < lines.length && (QUOTE.test(lines[next]) || (lines[next].trim() && !startsBlock(lines, next)))) {
    inner.push(lines[next].replace(QUOTE, ""));
    next += 1;
  }
  return [{ kind: "quote", text: inner.join("\n") }, next];
}

const isItem = (line) => ITEM.test(line) && !RULE.test(line);

const indentOf = (line) => /^ */.exec(line)[0].length;

// A list's items, each with the lines that are indented under it; those are Markdown again.
function list(lines, at) {
  const [, lead, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  let next = at;
  let loose = false;
  while (next < lines.length) {
    const line = lines[next];
    const item = ITEM.exec(line);
    if (item && !RULE.test(line) && indentOf(line) <= lead.length + 1) {
      if (/\d/.test(item[2]) !== ordered) break;
      items.push({ width: line.length - (item[3] ?? "").length, lines: [item[3] ?? ""] });
    } else if (line.trim() === "") {
      const following = lines.slice(next).find((later) => later.trim() !== "");
      if (following === undefined || !(indentOf(following) > lead.length + 1 || isItem(following))) break;
      if (isItem(following) && indentOf(following) <= lead.length + 1) loose = true;
      items.at(-1).lines.push("");
    } else if (indentOf(line) > lead.length + 1) {
      items.at(-1).lines.push(line.slice(Math.min(indentOf(line), items.at(-1).width)));
    } else if (startsBlock(lines, next) || lines[next - 1].trim() === "") {
      break;
    } else {
      items.at(-1).lines.push(line.trimStart());
    }
    next += 1;
  }
  const start = ordered ? Number.parseInt(mark, 10) : 1;
  return [{ kind: "list", ordered, start, loose, items: items.map((item) => item.lines.join("\n").trimEnd()) }, next];
}

function isTable(lines, at) {
  const separator = lines[at + 1];
  if (!lines[at].includes("|") || separator === undefined || !separator.includes("-")) return false;
  return SEPARATOR.test(separator) && cells(separator).length === cells(lines[at]).length;
}

function table(lines, at) {
  const head = cells(lines[at]);
  const aligns = cells(lines[at + 1]).map(alignment);
  const rows = [];
  let next = at + 2;
  while (next < lines.length && lines[next].trim() && lines[next].includes("|")) {
    const row = cells(lines[next]);
    rows.push(head.map((_, i) => row[i] ?? ""));
    next += 1;
  }
  return [{ kind: "table", head, aligns, rows }, next];
}

function alignment(rule) {
  if (rule.endsWith(":")) return rule.startsWith(":") ? "center" : "right";
  return "left";
}

// The cells of a row; a bar that is escaped or inside of code is text.
function cells(line) {
  const found = [""];
  let inCode = false;
  const row = line.trim().replace(/^\|/, "").replace(/([^\\]|^)\|$/, "$1");
  for (let i = 0; i < row.length; i += 1) {
    if (row[i] === "`") inCode = !inCode;
    if (row[i] === "\\" && row[i + 1] === "|") found[found.length - 1] += row[(i += 1)];
    else if (row[i] === "|" && !inCode) found.push("");
    else found[found.length - 1] += row[i];
  }
  return found.map((cell) => cell.trim());
}

// Whether a line ends the paragraph before it.
function startsBlock(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  // "1984. It was" in the middle of a paragraph is no list.
  return item !== null && item[3] !== undefined && (!/\d/.test(item[2]) || /^1[.)]/.test(item[2]));
}

function paragraph(lines, at) {
  let next = at + 1;
  while (next < lines.length && lines[next].trim() && !startsBlock(lines, next) && !isTable(lines, next)) next += 1;
  return [{ kind: "paragraph", text: lines.slice(at, next).map((line) => line.trimStart()).join("\n").trimEnd() }, next];
}
