// Conversations as files: JSON in OpenAI's form (a body that can be posted as it is), and Markdown to read.

import { el } from "./dom.js";
import { t } from "./i18n.js";
import { kindOf, MediaError, readFile } from "./media.js";
import { empty } from "./chat.js";
import { newId } from "./store.js";

export function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export function fileName(conversation, ending) {
  const words = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40);
  return `${words || "conversation"}.${ending}`;
}

export function markdownOf(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system?.trim()) parts.push(`**${t("systemPrompt")}**`, conversation.system.trim());
  for (const message of conversation.messages) {
    parts.push(`## ${message.role === "user" ? t("you") : message.model || t("answer")}`);
    for (const item of message.media ?? []) parts.push(`*[${t(item.kind)}: ${item.name}]*`);
    if (message.text.trim()) parts.push(message.text.trim());
  }
  return `${parts.join("\n\n")}\n`;
}

// A conversation of an exported file, with its media put on the shelf. Raises MediaError.
export async function conversationOf(text, shelf) {
  const body = parsed(text);
  const messages = Array.isArray(body) ? body : body?.messages;
  if (!Array.isArray(messages)) throw new MediaError("notConversation");
  const conversation = empty();
  conversation.system = "";
  for (const message of messages) {
    const read = await messageOf(message, shelf);
    if (message.role === "system") conversation.system = read.text;
    else conversation.messages.push(read);
  }
  if (!conversation.messages.length) throw new MediaError("notConversation");
  conversation.title = conversation.messages[0].text.slice(0, 60) || t("imported");
  return conversation;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new MediaError("notConversation");
  }
}

async function messageOf(message, shelf) {
  if (!["system", "user", "assistant"].includes(message?.role)) throw new MediaError("notConversation");
  const parts = typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content;
  if (!Array.isArray(parts)) throw new MediaError("notConversation");
  const texts = parts.filter((part) => part?.type === "text").map((part) => String(part.text));
  const read = { id: newId(), role: message.role, text: texts.join("\n") };
  if (message.role === "assistant") return { ...read, state: "done", model: "" };
  read.media = [];
  for (const part of parts.filter((one) => one?.type === "image_url" || one?.type === "video_url")) {
    const address = part[part.type]?.url ?? part[part.type];
    read.media.push(await mediaItem(address, shelf));
  }
  return read;
}

async function mediaItem(address, shelf) {
  const found = /^data:([\w/+.-]+);base64,([A-Za-z0-9+/=\s]+)$/.exec(typeof address === "string" ? address : "");
  if (!found) throw new MediaError("notConversation");
  const blob = new Blob([Uint8Array.from(atob(found[2]), (letter) => letter.charCodeAt(0))], { type: found[1] });
  blob.name = t(kindOf({ type: found[1] }) ?? "image");
  const { item, blob: kept } = await readFile(blob);
  shelf.add(item.id, kept);
  return item;
}
