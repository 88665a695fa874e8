// What the page asks the server. Addresses are relative, so that the page also works behind a path of a proxy.

import { events } from "./stream.js";

// `kind`: key (401), busy (503), refused (another status), offline (no answer), cut (the answer broke off), failed.
export class ServerError extends Error {
  constructor(kind, message = "", { status = 0, wait = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.wait = wait;  // seconds until the server wants to be asked again
  }
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

// [{id, parent, max_model_len}]: the base model and its adapters.
export async function listModels(key) {
  const response = await request("v1/models", { headers: headers(key) });
  return (await response.json()).data ?? [];
}

// The chunks of one streamed chat completion.
export async function* streamChat(body, { key, signal }) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError("failed", messageOf(chunk));
      finished ||= chunk.choices?.some((choice) => choice.finish_reason) ?? false;
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError("cut");
  }
  // A stream without its end was cut, whatever the connection says; behind a proxy it looks like a normal one.
  if (!finished) throw new ServerError("cut");
}

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("offline");
  }
  if (response.ok) return response;
  const message = messageOf(await response.json().catch(() => ({}))) || response.statusText;
  const kind = { 401: "key", 503: "busy" }[response.status] ?? "refused";
  const wait = Number.parseFloat(response.headers.get("retry-after") ?? "") || null;
  throw new ServerError(kind, message, { status: response.status, wait });
}

function messageOf(body) {
  return typeof body.error === "string" ? body.error : (body.error?.message ?? "");
}
