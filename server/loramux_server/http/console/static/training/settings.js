// How to train: name, recipe, settings, what lies underneath, when the result is promoted.

import "../chat/stack.js";
import { View, html, nothing } from "../view.js";

const RECIPES = [
  ["", "No recipe", "Rank 16, all layers, 3 epochs: PEFT's and TRL's usual settings. For anything, and for preference pairs."],
  ["facts", "Facts", "For what people ask a tenant's assistant. Rank 16, the upper half of the layers, 4 epochs, general rows mixed in."],
  ["style", "Style", "For a form of answer that holds on top of other adapters. Rank 8, 2 epochs, trained over donors: name several below."],
];
const NUMBERS = [
  ["rank", "Rank", { min: 1, step: 1 }, "Room for what is learned"],
  ["alpha", "Alpha", { min: 0, step: "any" }, "Scaling is alpha / rank"],
  ["learningRate", "Learning rate", { min: 0, step: "any" }, "Left empty: fitted to the base's size"],
  ["epochs", "Epochs", { min: 0, step: "any" }, "Passes over the rows"],
  ["maxSteps", "Most steps", { min: 1, step: 1 }, "Instead of epochs"],
  ["batchSize", "Batch size", { min: 1, step: 1 }, "Rows a step"],
  ["maxLength", "Longest row", { min: 1, step: 1 }, "In tokens; longer rows are refused"],
  ["validationSplit", "Held-out share", { min: 0, max: 0.99, step: "any" }, "Of the rows, where no held-out file is given"],
  ["evalSteps", "Measure every", { min: 1, step: 1 }, "Steps between two evaluations"],
  ["earlyStoppingPatience", "Patience", { min: 1, step: 1 }, "Evaluations without gain before it stops"],
  ["seed", "Seed", { step: 1 }, "Same seed, same adapter"],
];
const GATES = [
  ["", "As usual: it must beat the current version on held-out rows, if there are some"],
  ["KIND_NONE", "Always"],
  ["KIND_IMPROVES", "When its held-out loss is lower"],
  ["KIND_MIN_ACCURACY", "When it answers enough held-out questions right"],
];

class JobSettings extends View {
  static properties = {
    info: { attribute: false },
    models: { attribute: false },
    startable: { type: Boolean },
    recipe: { state: true },
    stacks: { state: true },
    gate: { state: true },
  };

  constructor() {
    super();
    Object.assign(this, { models: [], startable: false, recipe: "", stacks: [], gate: "" });
  }

  render() {
    return html`<form class="stacked" aria-label="Settings of the job" @submit=${this.#start} @change=${this.#changed}>
      <div class="fields wide">
        <div><label for="job-name">Name of the adapter</label>
          <input id="job-name" name="name" required autocomplete="off" spellcheck="false" pattern="[a-z0-9][a-z0-9._\\-]*" maxlength="64"
            title="a to z, 0 to 9, '.', '_' and '-'"></div>
        <div><label for="job-init">Go on from a version</label>
          <input id="job-init" name="initFrom" autocomplete="off" spellcheck="false" placeholder="fresh weights"></div>
      </div>
      <fieldset>
        <legend>Recipe</legend>
        <div class="recipes">
          ${RECIPES.map(
            ([value, title, hint]) => html`<div>
              <label class="row"><input type="radio" name="recipe" value=${value} ?checked=${value === this.recipe}
                aria-describedby="recipe-${value || "none"}"> ${title}</label>
              <p class="hint" id="recipe-${value || "none"}">${hint}</p>
            </div>`,
          )}
        </div>
      </fieldset>
      <details>
        <summary>Settings: what is left empty is as the recipe or the server has it</summary>
        <div class="fields wide">
          ${NUMBERS.map(
            ([name, label, bounds, hint]) => html`<div><label for="job-${name}">${label}</label>
              <input id="job-${name}" name=${name} type="number" min=${bounds.min ?? nothing} max=${bounds.max ?? nothing}
                step=${bounds.step} aria-describedby="job-${name}-hint">
              <p class="hint" id="job-${name}-hint">${hint}</p></div>`,
          )}
        </div>
      </details>
      <details>
        <summary>Distil a context into the adapter</summary>
        <div><label for="job-context">Context that the teacher reads</label>
          <textarea id="job-context" name="context" rows="4" aria-describedby="job-context-hint"></textarea>
          <p class="hint" id="job-context-hint">Instructions or facts. The adapter learns to answer without them as the base answers with
            them. Rows may be prompts alone: the base answers them, with this before each.</p></div>
      </details>
      <details ?open=${this.recipe === "style"}>
        <summary>Train over other adapters</summary>
        <p class="hint">The new adapter learns with these underneath, so that it stacks well with them. Rows take turns over the stacks;
          an empty stack is a turn over the base alone.</p>
        ${this.stacks.map(
          (stack, i) => html`<div class="underneath">
            <lm-stack label="Stack ${i + 1}" .stack=${stack} .models=${this.models} .most=${this.info.limits?.maxStack ?? 8}
              @change=${(event) => this.#stack(event, i)}></lm-stack>
            <button type="button" class="small" @click=${() => this.#stacks(this.stacks.toSpliced(i, 1))}>Remove stack ${i + 1}</button>
          </div>`,
        )}
        <button type="button" @click=${() => this.#stacks([...this.stacks, []])}>Add a stack to train over</button>
      </details>
      <details>
        <summary>Gate and comparison</summary>
        <div class="stacked">
          <div><label for="job-gate">The name moves to the result</label>
            <select id="job-gate" name="gate">${GATES.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select></div>
          ${this.gate === "KIND_MIN_ACCURACY"
            ? html`<div class="fields"><div><label for="job-accuracy">Least share of right answers</label>
                <input id="job-accuracy" name="minAccuracy" type="number" min="0" max="1" step="any" required value="0.8"></div></div>`
            : nothing}
          <div><label for="job-compare">Compare with this prompt</label>
            <textarea id="job-compare" name="compare" rows="2" aria-describedby="job-compare-hint"></textarea>
            <p class="hint" id="job-compare-hint">The held-out rows are also asked of the base, and of the base with this prompt, so that
              you see whether training was worth it.</p></div>
          <div><label for="job-top-k">Passages of the documents before a row</label>
            <input id="job-top-k" name="topK" type="number" min="1" max="50" step="1" aria-describedby="job-top-k-hint">
            <p class="hint" id="job-top-k-hint">3 where this is empty. The documents to compare with are chosen above, beside the
              held-out rows.</p></div>
        </div>
      </details>
      <div class="row"><button class="primary" ?disabled=${!this.startable}>Start training</button></div>
    </form>`;
  }

  #read() {
    const given = Object.fromEntries(new FormData(this.querySelector("form")));
    const numbers = NUMBERS.map(([name]) => name).filter((name) => given[name]);
    const wanted = {
      settings: Object.fromEntries(numbers.map((name) => [name, Number(given[name])])),
      recipe: given.recipe ?? "",
      onTopOf: this.stacks.map((stack) => ({ entries: stack.map(({ name, weight }) => ({ adapter: name, weight })) })),
      initFrom: given.initFrom.trim(),
      compare: given.compare.trim(),
      topK: given.topK,
    };
    if (given.context.trim()) wanted.settings.context = given.context.trim();
    if (given.gate) wanted.gate = { kind: given.gate, ...(given.minAccuracy ? { minAccuracy: Number(given.minAccuracy) } : {}) };
    return wanted;
  }

  #changed(event) {
    event.stopPropagation();
    if (event.target.name === "name") return; // it changes nothing that is checked beforehand
    if (event.target.name === "recipe") this.recipe = event.target.value;
    if (event.target.name === "gate") this.gate = event.target.value;
    this.#tell();
  }

  #stack(event, at) {
    event.stopPropagation();
    this.#stacks(this.stacks.with(at, event.detail));
  }

  #stacks(stacks) {
    this.stacks = stacks;
    this.#tell();
  }

  async #tell() {
    await this.updateComplete;
    this.dispatchEvent(new CustomEvent("change", { detail: this.#read() }));
  }

  #start(event) {
    event.preventDefault();
    this.dispatchEvent(new CustomEvent("change", { detail: this.#read() }));
    this.dispatchEvent(new CustomEvent("start", { detail: { name: event.target.elements.name.value } }));
  }
}

customElements.define("lm-job-settings", JobSettings);
