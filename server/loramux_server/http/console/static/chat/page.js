// Chat with a stack, or with two side by side on the same prompts.

import { ask } from "../api.js";
import { View, empty, html, nothing, problem } from "../view.js";
import { Conversation, messagesOf } from "./conversation.js";
import "./copy.js";
import "./sampling.js";
import "./stack.js";
import "./transcript.js";

const NARROW = matchMedia("(max-width: 50rem)");

class Chat extends View {
  static properties = {
    info: { attribute: false },
    models: { state: true },
    error: { state: true },
    told: { state: true }, // what screen readers are told, an answer at a time
    prompt: { state: true },
  };

  #conversations = [new Conversation(() => this.#changed())];

  constructor() {
    super();
    Object.assign(this, { models: [], error: null, told: "", prompt: "" });
  }

  connectedCallback() {
    super.connectedCallback();
    this.#list();
  }

  /** The reader signs out. */
  close() {
    this.#stop();
  }

  async #list() {
    try {
      const { data } = await ask("GET", "v1/models");
      this.models = data.filter(({ id }) => id !== "base");
      this.error = null;
    } catch (error) {
      this.error = error;
    }
  }

  get #busy() {
    return this.#conversations.some((each) => each.busy);
  }

  get #compares() {
    return this.#conversations.length > 1;
  }

  get #completes() {
    return !this.info.tokenizer?.hasChatTemplate;
  }

  get #began() {
    return this.#conversations.some(({ turns }) => turns.length);
  }

  render() {
    return html`
      <div class="row spread">
        <h1>Chat</h1>
        <div class="row">
          <button type="button" aria-pressed=${this.#compares} ?disabled=${this.#busy} @click=${this.#compare}>
            Two stacks side by side
          </button>
          <button type="button" ?disabled=${!this.#began} @click=${this.#copy}>Copy as code</button>
          <button type="button" ?disabled=${!this.#began} @click=${this.#clear}>New chat</button>
        </div>
      </div>
      <div class="chat">
        <details class="card settings" ?open=${!NARROW.matches}>
          <summary>Sampling</summary>
          <lm-sampling ?completes=${this.#completes}></lm-sampling>
        </details>
        <div class="columns ${this.#compares ? "two" : ""}">
          ${this.error ? problem(this.error, () => this.#list()) : nothing}
          ${this.#conversations.map((each, i) => this.#column(each, i))}
        </div>
        ${this.#composer()}
      </div>
      <div class="visually-hidden" role="status">${this.told}</div>
      <lm-copy-request></lm-copy-request>
    `;
  }

  #column(conversation, i) {
    const name = this.#compares ? `Stack ${"AB"[i]}` : "Stack";
    return html`<section class="column" aria-label=${name}>
      <lm-stack class="card" label=${name} .stack=${conversation.stack} .models=${this.models}
        .most=${this.info.limits?.maxStack ?? 8} @wanted=${this.#list}
        @stacked=${({ detail }) => this.#stacked(conversation, detail)}></lm-stack>
      ${conversation.turns.length
        ? html`<lm-transcript .turns=${[...conversation.turns]} .label=${conversation.label}
            .again=${() => this.#again(conversation)}></lm-transcript>`
        : i === 0
          ? this.#hint()
          : nothing}
    </section>`;
  }

  #hint() {
    const what = this.#completes
      ? "This base has no chat template: it goes on writing the text that you send."
      : "Write a message below. Every answer comes from the stack as it is then.";
    const more = this.models.length ? "" : " There is no adapter yet: train one, or upload one in PEFT's format.";
    return empty("Nothing was said yet.", what + more);
  }

  #composer() {
    return html`<form class="composer card" @submit=${this.#send}>
      <label class="visually-hidden" for="prompt">Message</label>
      <textarea id="prompt" rows="2" placeholder="Message… (Enter sends, Shift+Enter is a new line)"
        .value=${this.prompt} @input=${(event) => (this.prompt = event.target.value)} @keydown=${this.#key}></textarea>
      ${this.#busy
        ? html`<button type="button" class="primary" @click=${this.#stop}>Stop</button>`
        : html`<button class="primary" ?disabled=${!this.prompt.trim()}>Send</button>`}
    </form>`;
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#send(event);
    } else if (event.key === "Escape") this.#stop();
  }

  async #send(event) {
    event.preventDefault();
    const prompt = this.prompt;
    const settings = this.#settings();
    if (!prompt.trim() || this.#busy || !settings) return;
    this.prompt = "";
    await Promise.all(this.#conversations.map((each) => this.#ask(each, prompt, settings)));
  }

  async #ask(conversation, prompt, settings) {
    this.told = "Answering…";
    const answer = await conversation.ask(prompt, settings);
    this.told = answer.error ? "" : `${answer.model ?? conversation.label} answered: ${answer.content}`;
  }

  async #again(conversation) {
    const settings = this.#settings();
    if (!this.#busy && settings) await this.#ask(conversation, conversation.takeBack(), settings);
  }

  #settings() {
    return this.querySelector("lm-sampling").read();
  }

  #stop() {
    for (const each of this.#conversations) each.stop();
  }

  #stacked(conversation, stack) {
    conversation.stack = stack;
    this.requestUpdate();
  }

  #compare() {
    if (this.#compares) this.#conversations.pop();
    else this.#conversations.push(this.#second());
    this.requestUpdate();
  }

  /** The second conversation knows what was said in the first, so that the next prompt compares the stacks alone. */
  #second() {
    const second = new Conversation(() => this.#changed());
    second.turns = this.#conversations[0].turns.map((turn) => ({ ...turn }));
    return second;
  }

  #clear() {
    for (const each of this.#conversations) each.clear();
    this.told = "";
    this.querySelector("#prompt").focus();
  }

  #copy() {
    const settings = this.#settings();
    if (!settings) return;
    const requests = this.#conversations.map(({ label, stack, turns }) => {
      const asked = turns.slice(0, turns.findLastIndex(({ role }) => role === "user") + 1);
      return { label, stack, messages: messagesOf(asked, settings.system), settings };
    });
    this.querySelector("lm-copy-request").show(requests);
  }

  /** Show it, and stay at the end of what is written when the reader is there. */
  async #changed() {
    const page = document.scrollingElement;
    const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
    this.requestUpdate();
    await this.updateComplete;
    if (atEnd) page.scrollTop = page.scrollHeight;
  }
}

customElements.define("lm-chat", Chat);
