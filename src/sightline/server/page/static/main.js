// Puts the page together.

import { ServerError } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { askKey, dialogOpen, prepareDialogs } from "./dialogs.js";
import { $, toast } from "./dom.js";
import { icon } from "./icons.js";
import { setLanguage, t } from "./i18n.js";
import { ACCEPT, MediaError, Shelf } from "./media.js";
import { Models } from "./models.js";
import { Preferences } from "./preferences.js";
import { applyTheme, saveSettings, settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { openStore } from "./store.js";
import { conversationOf, fileName, markdownOf, save } from "./transfer.js";
import { Transcript } from "./transcript.js";

for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
applyTheme();
setLanguage(settings.language);
prepareDialogs();

const store = await openStore();
const shelf = new Shelf(store);
const chat = new Chat(store, shelf);
const models = new Models();
const composer = new Composer(chat, shelf);
const sidebar = new Sidebar(chat, store);
const actions = {
  edit: (message, text, media) => {
    chat.edit(message, text, media);
    composer.focus();
  },
  regenerate: () => {
    chat.regenerate();
    composer.focus();
  },
  retry: () => {
    chat.regenerate();
    composer.focus();
  },
  remove: async (message) => {
    const undo = await chat.removePair(message);
    composer.focus();
    toast(t("pairRemoved"), { label: t("undo"), run: undo });
  },
  giveKey,
};
const transcript = new Transcript(chat, { shelf, actions });

new Preferences(chat, (name) => {
  if (name === "key") loadModels();
  if (name === "language") {
    models.draw();
    transcript.redraw();
    sidebar.draw();
  }
});

async function giveKey() {
  const key = await askKey(settings.key);
  if (key === null) return;
  saveSettings({ key });
  await loadModels();
  if (chat.messages.at(-1)?.error?.kind === "key") chat.regenerate();
}

async function loadModels() {
  $("server-problem").hidden = true;
  try {
    await models.load();
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    models.draw();
    $("server-problem").hidden = false;
    $("server-problem-text").textContent = t(`error_${error.kind}`);
    if (error.kind === "key" && !dialogOpen()) await giveKey();
  }
}

$("reconnect").addEventListener("click", loadModels);
$("files").accept = ACCEPT;

for (const example of document.querySelectorAll("[data-example]")) {
  example.addEventListener("click", () => {
    composer.fill(t(`example_${example.dataset.example}_prompt`));
    if ("picture" in example.dataset) composer.pick();
  });
}

// Files in and out.
$("open-export").addEventListener("click", () => {
  const none = chat.messages.length === 0;
  for (const id of ["export-json", "export-markdown"]) $(id).disabled = none;
  $("export").showModal();
});
$("export-json").addEventListener("click", async () => {
  const { conversation } = chat;
  const body = await chat.request(conversation, conversation.messages.length);
  save(fileName(conversation, "json"), "application/json", `${JSON.stringify(body, null, 2)}\n`);
  $("export").close();
});
$("export-markdown").addEventListener("click", () => {
  save(fileName(chat.conversation, "md"), "text/markdown", markdownOf(chat.conversation));
  $("export").close();
});
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  $("export").close();
  try {
    await chat.adopt(await conversationOf(await file.text(), shelf));
  } catch (error) {
    if (!(error instanceof MediaError)) throw error;
    toast(`${file.name}: ${t(error.message)}`);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !dialogOpen() && chat.running) chat.stop();
});

// The address keeps which conversation is open, so that a reload shows it again.
chat.addEventListener("open", () => showAddress());
chat.addEventListener("sync", () => showAddress());
// An adapter may have been unloaded since the list was asked for.
chat.addEventListener("message", ({ detail }) => detail.error?.status === 404 && loadModels());
document.addEventListener("visibilitychange", () => document.hidden || sidebar.draw());  // another tab may have written
chat.addEventListener("unsaved", () => toast(t("unsaved")));

function showAddress() {
  const { conversation } = chat;
  const wanted = conversation.messages.length ? `#${conversation.id}` : "";
  if (location.hash !== wanted) history.replaceState(null, "", wanted || location.pathname);
  document.title = conversation.title ? `${conversation.title} · Sightline` : "Sightline";
}

window.addEventListener("hashchange", () => chat.open(location.hash.slice(1)));

const asked = location.hash.slice(1);
if (!asked || !(await chat.open(asked))) chat.start();
sidebar.draw();
if (!store.keeps) toast(t("notKept"));
// Where fingers point, a focus would open the keyboard over the page.
if (matchMedia("(pointer: fine)").matches) composer.focus();
document.body.dataset.ready = "";
await loadModels();
