// Puts a stack together: adapters found as one types, each with a slider for its weight.

import { View, html, newId, nothing } from "../view.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";

const MOST_SHOWN = 50;
const SLIDER = { min: -1, max: 2, step: 0.05 };
const LIMIT = 100; // weights lie between -100 and 100

class Stack extends View {
  static properties = {
    stack: { attribute: false },
    models: { attribute: false }, // what /v1/models lists, without the base
    most: { type: Number },
    label: {},
    text: { state: true },
    open: { state: true },
    active: { state: true },
  };

  #id = newId("stack");

  constructor() {
    super();
    Object.assign(this, { stack: [], models: [], most: 8, label: "Stack", text: "", open: false, active: -1 });
  }

  get #found() {
    const taken = new Set(this.stack.map(({ name }) => name));
    const words = this.text.toLowerCase().split(/\s+/).filter(Boolean);
    return this.models
      .filter(({ id }) => !taken.has(id) && words.every((word) => id.toLowerCase().includes(word)))
      .slice(0, MOST_SHOWN);
  }

  render() {
    return html`<fieldset class="stack">
      <legend>${this.label}</legend>
      ${this.stack.length ? this.#entries() : html`<p class="hint">The base alone. Add adapters to change how it answers.</p>`}
      ${this.stack.length < this.most
        ? this.#picker()
        : html`<p class="hint">${this.most} adapters are the most that one request may have.</p>`}
    </fieldset>`;
  }

  #entries() {
    return html`<ul class="entries">
      ${repeat(
        this.stack,
        ({ name }) => name,
        ({ name, weight }, i) => html`<li>
          <span class="name">${name}</span>
          <input type="range" min=${SLIDER.min} max=${SLIDER.max} step=${SLIDER.step} .value=${live(String(weight))}
            aria-label="Weight of ${name}" @input=${(event) => this.#weigh(i, Number(event.target.value))}>
          <input type="number" min=${-LIMIT} max=${LIMIT} step="any" .value=${String(weight)}
            aria-label="Weight of ${name} as a number" @change=${(event) => this.#write(i, event.target)}>
          <button type="button" class="plain small" aria-label="Remove ${name}" @click=${() => this.#remove(i)}>✕</button>
        </li>`,
      )}
    </ul>`;
  }

  #picker() {
    const found = this.open ? this.#found : [];
    const [input, list] = [`${this.#id}-input`, `${this.#id}-list`];
    return html`<div class="picker" @focusout=${this.#left}>
      <label class="visually-hidden" for=${input}>Add an adapter to ${this.label}</label>
      <input id=${input} role="combobox" autocomplete="off" spellcheck="false" placeholder="Add an adapter…"
        aria-expanded=${found.length ? "true" : "false"} aria-controls=${list} aria-autocomplete="list"
        aria-activedescendant=${found[this.active] ? `${list}-${this.active}` : nothing}
        .value=${live(this.text)} @input=${this.#typed} @focus=${this.#opened} @click=${this.#opened} @keydown=${this.#key}>
      <ul id=${list} role="listbox" aria-label="Adapters" ?hidden=${!found.length}>
        ${found.map(
          ({ id, root }, i) => html`<li id="${list}-${i}" role="option" aria-selected=${i === this.active}
            @mousedown=${(event) => event.preventDefault()} @click=${() => this.#add(id)}>
            ${id} ${root === id ? nothing : html`<span class="muted">${root}</span>`}
          </li>`,
        )}
      </ul>
      ${this.open && this.text && !found.length
        ? html`<p class="hint" role="status">No adapter is called so. Enter adds the name as typed, such as acme@3.</p>`
        : nothing}
    </div>`;
  }

  #typed(event) {
    this.text = event.target.value;
    this.active = -1;
    this.open = true;
  }

  #opened() {
    if (!this.open) this.dispatchEvent(new CustomEvent("wanted")); // the list may be old
    this.open = true;
  }

  #left(event) {
    if (!event.currentTarget.contains(event.relatedTarget)) this.open = false;
  }

  #key(event) {
    const found = this.#found;
    switch (event.key) {
      case "ArrowDown":
      case "ArrowUp":
        this.open = true;
        if (found.length) this.active = this.#moved(event.key === "ArrowDown" ? 1 : -1, found.length);
        break;
      case "Enter": {
        const name = found[this.active]?.id ?? this.text.trim();
        if (name) this.#add(name);
        break;
      }
      case "Escape":
        if (!this.open) return;
        this.open = false;
        break;
      default:
        return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  #moved(by, count) {
    return this.active < 0 ? (by > 0 ? 0 : count - 1) : (this.active + by + count) % count;
  }

  #add(name) {
    this.text = "";
    this.active = -1;
    this.open = false;
    if (!this.stack.some((entry) => entry.name === name)) this.#change([...this.stack, { name, weight: 1 }]);
  }

  #remove(at) {
    this.#change(this.stack.filter((_, i) => i !== at));
    this.updateComplete.then(() => this.querySelector("[role=combobox]")?.focus());
  }

  #weigh(at, weight) {
    this.#change(this.stack.map((entry, i) => (i === at ? { ...entry, weight } : entry)));
  }

  // The field keeps what is being typed until it is left, whatever is drawn meanwhile: its value is not `live`.
  #write(at, field) {
    const weight = Number(field.value);
    if (field.value === "" || !(Math.abs(weight) <= LIMIT)) field.value = String(this.stack[at].weight);
    else this.#weigh(at, weight);
  }

  #change(stack) {
    this.stack = stack;
    this.dispatchEvent(new CustomEvent("stacked", { detail: stack }));
  }
}

customElements.define("lm-stack", Stack);
