// New jobs, and the rows of running and past ones.

import { call } from "../api.js";
import { duration, moment, number } from "../format.js";
import { View, empty, html, nothing, problem, scrolling, waiting } from "../view.js";
import { date, word } from "../words.js";
import "./job.js";
import "./new-job.js";

const PAGE = 25;
const EVERY = 3000; // milliseconds

class Training extends View {
  static properties = {
    info: { attribute: false },
    jobs: { state: true },
    more: { state: true }, // whether there are older jobs
    most: { state: true },
    chosen: { state: true },
    making: { state: true },
    error: { state: true },
  };

  #timer = null;

  constructor() {
    super();
    Object.assign(this, { jobs: null, more: false, most: PAGE, chosen: "", making: false, error: null });
  }

  connectedCallback() {
    super.connectedCallback();
    this.#list();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    clearTimeout(this.#timer);
  }

  async #list() {
    clearTimeout(this.#timer);
    if (!document.hidden) {
      try {
        const { jobs = [], nextPageToken } = await call("TrainingService", "ListJobs", { pageSize: this.most });
        this.jobs = jobs;
        this.more = Boolean(nextPageToken);
        this.error = null;
      } catch (error) {
        this.error = error;
      }
    }
    if (this.isConnected) this.#timer = setTimeout(() => this.#list(), EVERY);
  }

  render() {
    return html`
      <div class="row spread">
        <h1>Training</h1>
        <button type="button" class="primary" aria-expanded=${this.making} @click=${() => (this.making = !this.making)}>New job</button>
      </div>
      ${this.making ? html`<lm-new-job class="card" .info=${this.info} @started=${this.#started}></lm-new-job>` : nothing}
      <div class="training ${this.chosen ? "two" : ""}">
        <section class="card" aria-label="Jobs">
          ${this.error ? problem(this.error, () => this.#list()) : nothing}
          ${this.jobs ? this.#table() : this.error ? nothing : waiting("Asking the server…")}
        </section>
        ${this.chosen
          ? html`<lm-job .job=${this.chosen} @changed=${() => this.#list()} @closed=${() => (this.chosen = "")}></lm-job>`
          : nothing}
      </div>
    `;
  }

  #table() {
    if (!this.jobs.length) return empty("No job was started yet.", "Start one with New job: it needs a file of rows to learn.");
    return html`${scrolling("Jobs", html`<table>
        <caption class="visually-hidden">Jobs, newest first</caption>
        <thead>
          <tr>
            <th scope="col">Adapter</th><th scope="col">State</th><th scope="col" class="number">Steps</th>
            <th scope="col" class="number">Loss</th><th scope="col">Left</th>
            ${this.chosen ? nothing : html`<th scope="col">Made</th>`}
          </tr>
        </thead>
        <tbody>${this.jobs.map((job) => this.#row(job))}</tbody>
      </table>`)}
      ${this.more ? html`<button type="button" @click=${this.#older}>Show older jobs</button>` : nothing}`;
  }

  #row({ id, name, state, step = 0, totalSteps = 0, metrics = {}, createdAt, gateResult }) {
    const running = state === "JOB_STATE_RUNNING";
    return html`<tr class=${id === this.chosen ? "chosen" : ""}>
      <th scope="row"><button type="button" class="link" aria-label="Show the job of ${name}, ${id}" @click=${() => (this.chosen = id)}>${name}</button></th>
      <td class=${state === "JOB_STATE_FAILED" ? "bad" : ""}>${word(state, "JOB_STATE")}${gateResult ? ", as a candidate" : ""}</td>
      <td class="number">${totalSteps ? `${number(step)}/${number(totalSteps)}` : "–"}</td>
      <td class="number">${typeof metrics.loss === "number" ? number(metrics.loss, 3) : "–"}</td>
      <td>${running && typeof metrics.eta_seconds === "number" ? duration(metrics.eta_seconds) : "–"}</td>
      ${this.chosen ? nothing : html`<td class="when">${moment(date(createdAt))}</td>`}
    </tr>`;
  }

  #older() {
    this.most += PAGE;
    this.#list();
  }

  #started({ detail: job }) {
    this.making = false;
    this.chosen = job.id;
    this.#list();
  }
}

customElements.define("lm-training", Training);
