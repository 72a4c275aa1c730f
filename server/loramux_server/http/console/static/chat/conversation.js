// One conversation with one stack: what was said, and the answer that comes now. It shows nothing itself.

import { aborted, events } from "../api.js";

export class Conversation {
  stack = []; // { name, weight }
  turns = []; // { role, content, thoughts, error, stopped, figures, state: "running" | "done" }
  #changed;
  #running = null;

  /** `changed()` is called after each change. */
  constructor(changed) {
    this.#changed = changed;
  }

  get busy() {
    return this.#running !== null;
  }

  get label() {
    return stackName(this.stack);
  }

  /** Ask, and write down the answer as it comes. Resolves when it is over, however it ended. */
  async ask(content, settings) {
    const answer = { role: "assistant", content: "", thoughts: "", state: "running", label: this.label };
    this.turns = [...this.turns, { role: "user", content }, answer];
    const body = requestOf(this.stack, messagesOf(this.turns.slice(0, -1), settings.system), settings);
    const running = (this.#running = new AbortController());
    this.#changed();
    const began = performance.now();
    const clock = () => (performance.now() - began) / 1000;
    let first = null;
    let usage = null;
    try {
      const stream = { ...body, stream: true, stream_options: { include_usage: true } };
      for await (const event of events("POST", pathOf(settings), { json: stream, signal: running.signal })) {
        usage = event.usage ?? usage;
        answer.model = event.model || answer.model;
        for (const choice of event.choices) {
          const piece = choice.delta?.content || choice.text || "";
          const thought = choice.delta?.reasoning_content || "";
          if (piece || thought) first ??= clock();
          answer.content += piece;
          answer.thoughts += thought;
          answer.finish = choice.finish_reason ?? answer.finish;
        }
        this.#changed();
      }
    } catch (error) {
      if (aborted(error)) answer.stopped = true;
      else answer.error = error;
    }
    answer.state = "done";
    answer.figures = { first, seconds: clock(), prompt: usage?.prompt_tokens, tokens: usage?.completion_tokens };
    if (this.#running === running) this.#running = null;
    this.#changed();
    return answer;
  }

  stop() {
    this.#running?.abort();
  }

  /** Take back the last question, for another try; gives its text. */
  takeBack() {
    const content = this.turns.at(-2)?.content;
    this.turns = this.turns.slice(0, -2);
    return content;
  }

  clear() {
    this.stop();
    this.turns = [];
    this.#changed();
  }
}

/** `acme + json × 0.5`, or `base`. */
export function stackName(stack) {
  return stack.map(({ name, weight }) => (weight === 1 ? name : `${name} × ${weight}`)).join(" + ") || "base";
}

/** The body of the request, in OpenAI's form. Fields that the reader left empty are left to the server. */
export function requestOf(stack, messages, settings) {
  const { fields, completes } = settings;
  const said = completes ? { prompt: messages.at(-1).content } : { messages };
  return { model: "base", ...(stack.length ? { adapters: stack } : {}), ...said, ...fields };
}

/** Where such a request goes: a base without a chat template goes on writing a text. */
export function pathOf({ completes }) {
  return completes ? "v1/completions" : "v1/chat/completions";
}

/** What the model is told: a question that got no answer is left out, since templates want turns to alternate. */
export function messagesOf(turns, system) {
  const told = turns.filter((turn, i) => (turn.role === "user" ? turns[i + 1]?.content !== "" : turn.content));
  const messages = told.map(({ role, content }) => ({ role, content }));
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}
