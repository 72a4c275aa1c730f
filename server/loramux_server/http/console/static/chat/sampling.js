// How tokens are chosen. What is left empty is the server's default.

import { View, html, newId, nothing } from "../view.js";

const NUMBERS = [
  { name: "max_tokens", label: "Most tokens", min: 1, step: 1 },
  { name: "temperature", label: "Temperature", min: 0, max: 10, step: "any", hint: "0 is greedy" },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: "any", hint: "1 is off" },
  { name: "top_k", label: "Top k", min: 0, step: 1, hint: "0 is off" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: "any", hint: "0 is off" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0, max: 10, step: "any", hint: "1 is off" },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: "any" },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: "any" },
  { name: "seed", label: "Seed", step: 1, hint: "same seed, same answer" },
];

class Sampling extends View {
  static properties = { completes: { type: Boolean } };

  #ids = newId("sampling");

  render() {
    return html`<form class="sampling stacked" @submit=${(event) => event.preventDefault()}>
      ${this.completes
        ? nothing
        : html`<div>
            <label for="${this.#ids}-system">System prompt</label>
            <textarea id="${this.#ids}-system" name="system" rows="3"></textarea>
          </div>`}
      <div class="fields">${NUMBERS.map((field) => this.#number(field))}</div>
      <div>
        <label for="${this.#ids}-stop">Stop at</label>
        <textarea id="${this.#ids}-stop" name="stop" rows="2" aria-describedby="${this.#ids}-stop-hint"></textarea>
        <span class="hint" id="${this.#ids}-stop-hint">One text a line ends the answer.</span>
      </div>
    </form>`;
  }

  #number({ name, label, min, max, step, hint }) {
    const id = `${this.#ids}-${name}`;
    return html`<div>
      <label for=${id}>${label}</label>
      <input id=${id} name=${name} type="number" min=${min ?? nothing} max=${max ?? nothing} step=${step}
        placeholder="default" aria-describedby=${hint ? `${id}-hint` : nothing}>
      ${hint ? html`<span class="hint" id="${id}-hint">${hint}</span>` : nothing}
    </div>`;
  }

  /** The fields of a request, or null after showing which one cannot be so. */
  read() {
    const form = this.querySelector("form");
    if (!form.checkValidity()) {
      this.closest("details")?.setAttribute("open", "");
      form.reportValidity();
      return null;
    }
    const values = new FormData(form);
    const numbers = NUMBERS.map(({ name }) => [name, values.get(name)]).filter(([, text]) => text);
    const stop = values.get("stop").split("\n").filter(Boolean);
    return {
      completes: this.completes,
      system: values.get("system")?.trim() ?? "",
      fields: { ...Object.fromEntries(numbers.map(([name, text]) => [name, Number(text)])), ...(stop.length ? { stop } : {}) },
    };
  }
}

customElements.define("lm-sampling", Sampling);
