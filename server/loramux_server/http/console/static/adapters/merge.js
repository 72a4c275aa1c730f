// Merges a weighted stack into a version of its own.

import { ask, call } from "../api.js";
import "../chat/stack.js";
import { View, html, nothing, problem } from "../view.js";

const METHODS = {
  CAT: "Concatenate: exactly the stack's answers, with the sum of the ranks.",
  SVD: "SVD: the best approximation of the sum at a rank that you choose.",
  LINEAR: "Linear: weighted sums of the factors; all ranks must be the same.",
  TIES: "TIES: keeps the largest changes and lets the majority choose the sign.",
  DARE_TIES: "DARE with TIES: drops changes at random first.",
  MAGNITUDE_PRUNE: "Prune: keeps the largest changes only.",
};
const WITH_DENSITY = ["TIES", "DARE_TIES", "MAGNITUDE_PRUNE"];

class Merge extends View {
  static properties = {
    info: { attribute: false },
    stack: { state: true },
    models: { state: true },
    method: { state: true },
    busy: { state: true },
    error: { state: true },
  };

  constructor() {
    super();
    Object.assign(this, { stack: [], models: [], method: "CAT", busy: false, error: null });
  }

  connectedCallback() {
    super.connectedCallback();
    this.#list();
  }

  async #list() {
    try {
      const { data } = await ask("GET", "v1/models");
      this.models = data.filter(({ id }) => id !== "base");
    } catch (error) {
      this.error = error;
    }
  }

  render() {
    const { method } = this;
    return html`<form class="stacked" aria-label="Merge a stack" @submit=${this.#send}>
      <h2>Merge a stack</h2>
      <p class="hint">A new version that answers as the stack does, alone. The adapters stay as they are.</p>
      <lm-stack label="Stack to merge" .stack=${this.stack} .models=${this.models} .most=${this.info.limits?.maxStack ?? 8}
        @wanted=${this.#list} @stacked=${({ detail }) => (this.stack = detail)}></lm-stack>
      <div class="fields">
        <div><label for="merge-name">Name of the result</label>
          <input id="merge-name" name="name" required autocomplete="off" spellcheck="false" pattern="[a-z0-9][a-z0-9._\\-]*" maxlength="64"></div>
        <div><label for="merge-method">Method</label>
          <select id="merge-method" aria-describedby="merge-hint" @change=${({ target }) => (this.method = target.value)}>
            ${Object.keys(METHODS).map((name) => html`<option value=${name} ?selected=${name === method}>${name}</option>`)}
          </select></div>
        ${method === "SVD" ? this.#number("rank", "Rank", 1, 1) : nothing}
        ${WITH_DENSITY.includes(method) ? this.#number("density", "Share of values kept", 0.05, 0.05, 1) : nothing}
        ${method === "DARE_TIES" ? this.#number("seed", "Seed", 1, 0) : nothing}
      </div>
      <p class="hint" id="merge-hint">${METHODS[method]}</p>
      ${this.error ? problem(this.error) : nothing}
      <div class="row">
        <button class="primary" ?disabled=${this.busy || !this.stack.length}>Merge</button>
        ${this.busy ? html`<span role="status">Merging…</span>` : nothing}
      </div>
    </form>`;
  }

  #number(name, label, step, least, most) {
    return html`<div><label for="merge-${name}">${label}</label>
      <input id="merge-${name}" name=${name} type="number" step=${step} min=${least} max=${most ?? nothing} placeholder="default"></div>`;
  }

  async #send(event) {
    event.preventDefault();
    const { name, ...given } = Object.fromEntries(new FormData(event.target));
    const numbers = Object.entries(given).filter(([key, value]) => ["rank", "density", "seed"].includes(key) && value !== "");
    this.busy = true;
    this.error = null;
    try {
      const { version } = await call("AdapterService", "ComposeAdapter", {
        name,
        method: `COMPOSE_METHOD_${this.method}`,
        adapters: this.stack.map((entry) => ({ adapter: entry.name, weight: entry.weight })),
        ...Object.fromEntries(numbers.map(([key, value]) => [key, Number(value)])),
      });
      this.dispatchEvent(new CustomEvent("published", { detail: version }));
    } catch (error) {
      this.error = error;
    } finally {
      this.busy = false;
    }
  }
}

customElements.define("lm-adapter-merge", Merge);
