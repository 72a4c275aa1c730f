// One job as it goes: curve, time left, gate, comparison, and what may be done with it.

import { aborted, call, stream } from "../api.js";
import { duration, number, percent } from "../format.js";
import { View, html, newId, nothing, problem, scrolling, waiting } from "../view.js";
import { stackText, word } from "../words.js";
import "../confirm.js";
import "../curve.js";

const FINAL = ["SUCCEEDED", "FAILED", "CANCELLED"].map((state) => `JOB_STATE_${state}`);
const AGAIN = 2000; // milliseconds until a lost connection is tried again
const NAMES = {
  base: "the base",
  init: "the version it continues",
  prompt: "the base with the prompt",
  retrieval: "the base with passages",
  adapter: "the new adapter",
  adapter_retrieval: "the new adapter with passages",
};
const SIDES = Object.keys(NAMES);
const COMPARED = [
  ["Right", "accuracy", (value) => percent(value, 1), "accuracy_error"],
  ["Exactly as expected", "exact_match", (value) => percent(value, 1), "exact_match_error"],
  ["Loss", "loss", (value) => number(value, 3), "loss_error"],
  ["Prompt tokens", "prompt_tokens", (value) => number(value, 0)],
  ["First token", "first_token_seconds", duration],
  ["Whole answer", "seconds", duration],
];
const MOST_SAID = 50; // messages that are shown

class Job extends View {
  static properties = {
    job: {}, // its id
    found: { state: true }, // what the server says of it
    events: { state: true },
    error: { state: true },
    busy: { state: true },
    told: { state: true },
  };

  #id = newId("job");
  #watching = null; // ends the watch

  constructor() {
    super();
    Object.assign(this, { found: null, events: [], error: null, busy: false, told: "" });
  }

  connectedCallback() {
    super.connectedCallback();
    if (this.hasUpdated) this.#watch(); // shown again
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#watching?.abort();
  }

  willUpdate(changed) {
    if (!changed.has("job")) return;
    Object.assign(this, { found: null, events: [], error: null, told: "" });
    this.#watch();
  }

  /** Follow the events from the last one on that is known, until the job ends or another is shown. */
  async #watch() {
    this.#watching?.abort();
    const { signal } = (this.#watching = new AbortController());
    const jobId = this.job;
    while (!signal.aborted) {
      try {
        await this.#refresh(signal);
        const afterSequence = String(this.events.at(-1)?.sequence ?? 0);
        for await (const event of stream("TrainingService", "WatchJob", { jobId, afterSequence }, { signal })) {
          if (signal.aborted) return;
          this.events = [...this.events, event];
          if (event.type === "JOB_EVENT_TYPE_STATE") await this.#refresh(signal);
        }
        await this.#refresh(signal);
        if (FINAL.includes(this.found?.state)) return this.#tell("changed");
      } catch (error) {
        if (aborted(error)) return;
        this.error = error;
        if (error.status && error.status !== 503) return;
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN)); // the server stops, or cannot be reached
    }
  }

  async #refresh(signal) {
    this.found = await call("TrainingService", "GetJob", { jobId: this.job }, { signal });
    this.error = null;
  }

  render() {
    const { found } = this;
    return html`<section class="card job" aria-labelledby=${this.#id}>
        <div class="row spread">
          <h2 id=${this.#id}>${found ? `Job of ${found.name}` : "Job"}</h2>
          <button type="button" class="plain small" @click=${() => this.#tell("closed")}>Close</button>
        </div>
        ${this.error ? problem(this.error, () => this.#watch()) : nothing}
        ${found ? this.#whole(found) : this.error ? nothing : waiting("Asking for the job…")}
        <p class="told" role="status">${this.told}</p>
      </section>
      <lm-confirm></lm-confirm>`;
  }

  #whole(found) {
    const { state, adapter, gateResult, error, metrics = {} } = found;
    return html`
      <p role="status">State: <strong class=${state === "JOB_STATE_FAILED" ? "bad" : state === "JOB_STATE_SUCCEEDED" ? "good" : ""}>${word(state, "JOB_STATE")}</strong></p>
      ${error ? html`<p class="bad">${error.message}</p>` : nothing}
      ${this.#progress(found)}
      <div class="row">${this.#actions(state)}</div>
      <lm-curve .events=${this.events} label="Loss of the job"></lm-curve>
      ${adapter ? html`<p class="good">It published ${adapter.name} version ${adapter.version}${gateResult ? "" : ", which the name means now"}.</p>` : nothing}
      ${gateResult ? html`<p class="warn">The gate kept it a candidate: ${gateResult}</p>` : nothing}
      ${this.#comparison(metrics)}
      ${found.answers?.length ? this.#answers(found.answers) : nothing}
      ${this.#settings(found)}
      ${this.#said()}
    `;
  }

  get #metrics() {
    const step = this.events.findLast(({ type }) => type === "JOB_EVENT_TYPE_STEP");
    return { ...this.found.metrics, ...step?.metrics };
  }

  #progress({ state, totalSteps = 0 }) {
    const last = this.events.findLast(({ type }) => type === "JOB_EVENT_TYPE_STEP");
    const step = Math.max(last?.step ?? 0, this.found.step ?? 0);
    const all = last?.totalSteps || totalSteps;
    const metrics = this.#metrics;
    const facts = [
      ["Step", all ? `${number(step)} of ${number(all)}` : "–"],
      ["Loss", figure(metrics.loss, (value) => number(value, 4))],
      ["Time left", state === "JOB_STATE_RUNNING" ? figure(metrics.eta_seconds, duration) : "–"],
      ["Learning rate", figure(metrics.learning_rate, (value) => value.toExponential(1))],
      ["Tokens a second", figure(metrics.tokens_per_second, (value) => number(value, 0))],
      ["Held-out loss", figure(this.found.metrics?.eval_loss, (value) => number(value, 4))],
    ];
    return html`${all ? html`<progress max=${all} value=${step} aria-label="Steps done"></progress>` : nothing}
      <dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd class="number">${value}</dd></div>`)}</dl>`;
  }

  #actions(state) {
    const button = (title, method, kind = "") => html`<button type="button" class=${kind} ?disabled=${this.busy}
      @click=${() => (method === "CancelJob" ? this.#cancel() : this.#do(method))}>${title}</button>`;
    if (FINAL.includes(state)) return state === "JOB_STATE_FAILED" ? button("Resume", "ResumeJob") : nothing;
    return [
      state === "JOB_STATE_PAUSED" ? button("Resume", "ResumeJob") : button("Pause", "PauseJob"),
      button("Cancel job", "CancelJob", "danger"),
    ];
  }

  #comparison(metrics) {
    const sides = SIDES.filter((side) => metrics[`compare_${side}_accuracy`] !== undefined || metrics[`compare_${side}_loss`] !== undefined);
    if (!sides.length) return nothing;
    const verdict = this.events.findLast((event) => event.metrics?.compare_questions !== undefined)?.message;
    return html`${verdict ? html`<p class="verdict">${verdict}</p>` : nothing}${scrolling("Comparison", html`<table>
      <caption>Comparison on ${number(metrics.compare_questions ?? 0)} held-out questions</caption>
      <thead><tr><th scope="col">Who answers</th>${COMPARED.map(([title]) => html`<th scope="col" class="number">${title}</th>`)}
        <th scope="col" class="number">Tokens of 1,000 requests</th></tr></thead>
      <tbody>
        ${sides.map(
          (side) => html`<tr>
            <th scope="row">${NAMES[side]}</th>
            ${COMPARED.map(([, name, write, error]) => html`<td class="number">${figure(metrics[`compare_${side}_${name}`], write)}${
              error ? html` <span class="muted">± ${figure(metrics[`compare_${side}_${error}`], write)}</span>` : nothing}</td>`)}
            <td class="number">${figure(1000 * (metrics[`compare_${side}_prompt_tokens`] + metrics[`compare_${side}_answer_tokens`]), number)}</td>
          </tr>`,
        )}
      </tbody>
    </table>`)}`;
  }

  #answers(answers) {
    return html`<details><summary>Answers to held-out questions</summary>
      ${answers.map(
        ({ question, expected = [], answers: given = [], passages = [] }) => html`<div class="asked">
          <p><strong>${question}</strong> <span class="muted">Expected: ${expected.join(", ")}</span></p>
          ${passages.length ? html`<details><summary>Passages found</summary><ol>${passages.map((text) => html`<li>${text}</li>`)}</ol></details>` : nothing}
          <ul>${given.map(({ side, text, right }) => html`<li>${NAMES[side] ?? side}: ${text}
            <span class=${right ? "good" : "bad"}>${right ? "right" : "wrong"}</span></li>`)}</ul>
        </div>`,
      )}
    </details>`;
  }

  #settings({ id, settings = {}, onTopOf = [], initFrom, comparePrompt, compareDocuments, compareTopK }) {
    const rows = Object.entries(settings).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : String(value)]);
    if (onTopOf.length) rows.push(["on top of", onTopOf.map(({ entries }) => stackText(entries)).join("; ")]);
    if (initFrom) rows.push(["continues", initFrom]);
    if (comparePrompt) rows.push(["compared with", comparePrompt]);
    if (compareDocuments) rows.push(["compared with passages", `${compareTopK} of ${compareDocuments}`]);
    return html`<details><summary>Settings</summary>
      <dl class="facts">${[["job", id], ...rows].map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    </details>`;
  }

  #said() {
    const said = this.events.filter(({ message }) => message).slice(-MOST_SAID).reverse();
    if (!said.length) return nothing;
    return html`<details><summary>Messages</summary><ul>${said.map(({ message, step }) => html`<li>${step ? `Step ${number(step)}: ` : nothing}${message}</li>`)}</ul></details>`;
  }

  async #cancel() {
    const consequence = "Nothing is published, and it cannot be resumed. To stop it for a while, pause it.";
    if (await this.querySelector("lm-confirm").ask(`Cancel the job of ${this.found.name}?`, consequence, "Cancel the job")) await this.#do("CancelJob");
  }

  async #do(method) {
    this.busy = true;
    try {
      this.found = await call("TrainingService", method, { jobId: this.job });
      this.told = { CancelJob: "The job is cancelled.", PauseJob: "The job pauses.", ResumeJob: "The job goes on." }[method];
      this.error = null;
      this.#tell("changed");
      if (method === "ResumeJob") this.#watch();
    } catch (error) {
      this.error = error;
    } finally {
      this.busy = false;
    }
  }

  #tell(what) {
    this.dispatchEvent(new CustomEvent(what));
  }
}

function figure(value, write) {
  return Number.isFinite(value) ? write(value) : "–";
}

customElements.define("lm-job", Job);
