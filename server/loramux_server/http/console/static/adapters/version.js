// The card of one version: where it comes from, its figures, and the curve of its training.

import { aborted, stream } from "../api.js";
import { bytes, moment, number, percent } from "../format.js";
import { View, html, nothing, problem } from "../view.js";
import { date, stackText, word } from "../words.js";
import "../curve.js";

class Version extends View {
  static properties = {
    info: { attribute: false },
    version: { attribute: false },
    events: { state: true },
    error: { state: true },
  };

  #curve = null; // ends the reading of a curve
  #of = ""; // the job whose curve is shown

  constructor() {
    super();
    Object.assign(this, { events: [], error: null });
  }

  connectedCallback() {
    super.connectedCallback();
    if (this.hasUpdated && !this.events.length) this.#read(this.version.jobId ?? ""); // shown again
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#curve?.abort();
  }

  willUpdate(changed) {
    if (changed.has("version") && (this.version.jobId ?? "") !== this.#of) this.#read(this.version.jobId ?? "");
  }

  /** Read the events of the job that made the version. */
  async #read(jobId) {
    this.#curve?.abort();
    this.#of = jobId;
    this.events = [];
    this.error = null;
    if (!jobId || !this.info.caller?.scopes?.includes("train")) return;
    const { signal } = (this.#curve = new AbortController());
    try {
      const found = [];
      for await (const event of stream("TrainingService", "WatchJob", { jobId }, { signal })) found.push(event);
      this.events = found;
    } catch (error) {
      if (!aborted(error) && error.status !== 404) this.error = error; // a job of another tenant: there is no curve
    }
  }

  render() {
    const version = this.version;
    const { metrics = {}, metadata = {}, warnings = [], gateResult, stateReason, composed } = version;
    const reasons = [stateReason, gateResult, ...warnings].filter(Boolean);
    return html`<div class="version">
      <h3>Version ${version.version}</h3>
      ${version.forOtherBase ? html`<p class="bad">It was made for another base and cannot be used here.</p>` : nothing}
      ${reasons.length ? html`<ul class="warn">${reasons.map((reason) => html`<li>${reason}</li>`)}</ul>` : nothing}
      <dl class="facts">
        ${this.#facts(version).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
        ${composed ? this.#merge(composed) : nothing}
        ${Object.entries(metadata).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
      </dl>
      ${this.error ? problem(this.error, () => this.#read(version.jobId)) : nothing}
      ${this.events.length ? html`<h4>Training</h4><lm-curve .events=${this.events} label="Loss of version ${version.version}"></lm-curve>` : nothing}
      ${Object.keys(metrics).length ? this.#figures(metrics) : nothing}
    </div>`;
  }

  #facts(version) {
    const { alpha, rank, rslora, targetModules = [], layers = [], trainedOn = [] } = version;
    return [
      ["Published", moment(date(version.createdAt))],
      ["Continues", version.parent || "nothing: fresh weights"],
      ["Made by", version.jobId ? `job ${version.jobId}` : version.composed ? "a merge" : "an upload"],
      ["Trained over", trainedOn.length ? trainedOn.map(({ entries }) => stackText(entries)).join("; ") : "the base alone"],
      ["Rank and alpha", `${number(rank)}, ${number(alpha, 2)}${rslora ? ", rsLoRA" : ""}`],
      ["Modules", targetModules.join(", ")],
      ["Layers", layers.length ? `${layers[0]} to ${layers.at(-1)} (${layers.length})` : "all"],
      ["Asked with", version.askedWith || "not known"],
      ["Size", bytes(version.sizeBytes)],
      ["Where", `${word(version.tier, "ADAPTER_TIER") || "not known"}${version.pinned ? ", pinned" : ""}`],
      ["Last used", version.lastUsedAt ? moment(date(version.lastUsedAt)) : "never"],
      ["Digest", html`<code>${(version.digest ?? "").slice(0, 16)}</code>`],
    ];
  }

  #merge({ method, stack, error = 0 }) {
    return html`<div><dt>Merged</dt><dd>${stackText(stack?.entries)} with ${word(method, "COMPOSE_METHOD")}</dd></div>
      <div><dt>What the merge misses</dt><dd>${percent(error, 2)} of the stack</dd></div>`;
  }

  #figures(metrics) {
    return html`<details>
      <summary>Figures</summary>
      <dl class="facts">
        ${Object.entries(metrics)
          .sort(([a], [b]) => a.localeCompare(b))
          .map(([name, value]) => html`<div><dt><code>${name}</code></dt><dd>${typeof value === "number" ? number(value, 4) : value}</dd></div>`)}
      </dl>
    </details>`;
  }
}

customElements.define("lm-version", Version);
