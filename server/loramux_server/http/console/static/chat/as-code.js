// The request as a command or program that does the same elsewhere. No key is written: it comes from the environment.

import { pathOf, requestOf } from "./conversation.js";

/** The ways to write a request, each a function of the stack, the messages and the settings. */
export const languages = { curl: asCurl, Python: asPython, OpenAI: asOpenAI };

function base() {
  return new URL(".", document.baseURI).href;
}

function asCurl(stack, messages, settings) {
  const body = JSON.stringify(requestOf(stack, messages, settings), null, 2).replaceAll("'", "'\\''");
  return `curl ${base()}${pathOf(settings)} \\
  -H "Authorization: Bearer $LORAMUX_API_KEY" \\
  -H 'Content-Type: application/json' \\
  -d '${body}'
`;
}

function asPython(stack, messages, settings) {
  const said = settings.completes ? argument("prompt", messages.at(-1).content) : argument("messages", messages);
  const weights = Object.fromEntries(stack.map(({ name, weight }) => [name, weight]));
  const adapters = stack.length ? [argument("adapters", weights)] : [];
  return `from loramux import Client

# LORAMUX_ADDRESS and LORAMUX_API_KEY in the environment say where and who.
with Client() as client:
    for chunk in client.stream(
        ${[said, ...adapters, ...Object.entries(settings.fields).map(([k, v]) => argument(k, v))].join(",\n        ")},
    ):
        print(chunk.text, end="", flush=True)
`;
}

function asOpenAI(stack, messages, settings) {
  const { model, adapters, ...rest } = requestOf(stack, messages, settings);
  const own = ["top_k", "min_p", "repetition_penalty"];
  const extra = { ...(adapters ? { adapters } : {}), ...pick(rest, (name) => own.includes(name)) };
  const fields = { model, ...pick(rest, (name) => !own.includes(name)), stream: true };
  const listed = Object.entries(fields).map(([k, v]) => argument(k, v));
  if (Object.keys(extra).length) listed.push(argument("extra_body", extra));
  return `import os

from openai import OpenAI

client = OpenAI(base_url=${python(`${base()}v1`)}, api_key=os.environ.get("LORAMUX_API_KEY", "none"))
for chunk in client.${settings.completes ? "completions" : "chat.completions"}.create(
    ${listed.join(",\n    ")},
):
    for choice in chunk.choices:
        print(choice.${settings.completes ? "text" : "delta.content"} or "", end="", flush=True)
`;
}

function pick(object, wanted) {
  return Object.fromEntries(Object.entries(object).filter(([name]) => wanted(name)));
}

function argument(name, value) {
  return `${name}=${python(value)}`;
}

/** A value as Python writes it. */
function python(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${python(k)}: ${python(v)}`).join(", ")}}`;
  return JSON.stringify(value);
}
