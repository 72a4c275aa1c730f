// Calls of the server, all of them. Paths are relative to the page.

import { session } from "./session.js";

/** What the server, or the way to it, refused. `message` is a sentence to show; `status` is 0 when nothing answered. */
export class Refusal extends Error {
  constructor(message, { status = 0, code = "", violations = [], retryAfter = 0 } = {}) {
    super(sentence(message));
    Object.assign(this, { status, code, violations, retryAfter });
  }
}

/** Send a request; gives the answer once its headers are here. `json` or `form` is the body. */
export async function send(method, path, { json, form, signal } = {}) {
  const headers = new Headers();
  if (session.key) headers.set("authorization", `Bearer ${session.key}`);
  if (json !== undefined) headers.set("content-type", "application/json");
  const url = new URL(path, document.baseURI);
  let answer;
  try {
    const body = json === undefined ? form : JSON.stringify(json);
    answer = await fetch(url, { method, headers, body, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(`${url.host} does not answer. Check that the server runs, then try again`);
  }
  if (answer.ok) return answer;
  const refusal = await refusalOf(answer);
  if (answer.status === 401) session.refused(refusal);
  throw refusal;
}

/** One of OpenAI's operations, answered with JSON. */
export async function ask(method, path, options) {
  return (await send(method, path, options)).json();
}

/** One of loramux's own operations: `call("ServerService", "GetServerInfo")`. Fields are in lowerCamelCase. */
export function call(service, method, message = {}, options = {}) {
  return ask("POST", path(service, method), { json: message, ...options });
}

/** The messages of one of loramux's own operations that streams. */
export function stream(service, method, message = {}, options = {}) {
  return events("POST", path(service, method), { json: message, ...options });
}

/** One of loramux's own operations that takes files: `header` is the message before them. */
export function upload(service, method, header, files, options = {}) {
  const form = new FormData();
  form.append("header", JSON.stringify(header));
  for (const file of files) form.append("file", file, file.name);
  return ask("POST", path(service, method), { form, ...options });
}

/** Keep the files of one of loramux's own operations, a zip archive, under `name`. */
export async function download(service, method, message, name) {
  const answer = await send("POST", path(service, method), { json: message });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // browsers do not tell when they have it
}

/** The server-sent events of an answer, each as the JSON that it holds. */
export async function* events(method, path, options) {
  const answer = await send(method, path, options);
  for await (const data of dataOf(answer.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw refusal(event.error, answer);
    yield event;
  }
}

export function aborted(error) {
  return error.name === "AbortError";
}

function path(service, method) {
  return `loramux.v1.${service}/${method}`;
}

async function* dataOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the reader left early: the server hears of it
  }
}

async function refusalOf(answer) {
  const body = await answer.json().catch(() => ({}));
  return refusal(body.error ?? body, answer);
}

function refusal(error, answer) {
  const message = error.message || `the server answered ${answer.status}`;
  const retryAfter = Number(answer.headers.get("retry-after") ?? 0);
  return new Refusal(message, { status: answer.status, code: error.code, violations: violationsOf(error), retryAfter });
}

/** The bad fields: OpenAI's operations list them, loramux's own have them in a detail. */
function violationsOf(error) {
  const own = error.details?.find(({ type }) => type === "google.rpc.BadRequest");
  return error.violations ?? own?.debug?.fieldViolations ?? [];
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
