// A new job: what to learn, what it would cost, how to train, start.

import { ask, call, upload } from "../api.js";
import { bytes, number } from "../format.js";
import { View, html, nothing, problem, waiting } from "../view.js";
import "../drop.js";
import { asRows } from "./documents.js";
import "./report.js";
import "./settings.js";

const SHOWN = 3; // rows at once

class NewJob extends View {
  static properties = {
    info: { attribute: false },
    datasets: { state: true },
    models: { state: true },
    dataset: { state: true }, // its id
    heldOut: { state: true }, // the id of the held-out dataset; "": none
    documents: { state: true }, // the id of the dataset of documents that are compared; "": none
    report: { state: true },
    refused: { state: true }, // why the settings cannot be checked
    busy: { state: true }, // what is being done
    starting: { state: true },
    error: { state: true },
    wanted: { state: true }, // the settings
  };

  #asked = 0;
  #line = 0; // the first line that is shown

  constructor() {
    super();
    Object.assign(this, { datasets: [], models: [], dataset: "", heldOut: "", documents: "", report: null, refused: null, busy: "", error: null });
    this.starting = false;
    this.wanted = { settings: {} };
  }

  connectedCallback() {
    super.connectedCallback();
    this.#list();
  }

  async #list() {
    try {
      const [{ datasets = [] }, { data }] = await Promise.all([
        call("TrainingService", "ListDatasets", { pageSize: 100 }),
        ask("GET", "v1/models").catch(() => ({ data: [] })), // a key may train without the scope infer
      ]);
      this.datasets = datasets;
      this.models = data.filter(({ id }) => id !== "base");
    } catch (error) {
      this.error = error;
    }
  }

  render() {
    return html`<section class="stacked" aria-label="New job">
      <h2>New job</h2>
      ${this.error ? problem(this.error) : nothing}
      <div class="datasets">
        <lm-drop label="Rows to learn" accept=".jsonl,.json" ?disabled=${Boolean(this.busy)}
          hint="Drop a file of rows here: JSON Lines with messages, prompt and completion, text, or preference pairs."
          @files=${({ detail }) => this.#upload(detail.files[0], "dataset")}></lm-drop>
        <lm-drop label="Held-out rows, if you have some" accept=".jsonl,.json" ?disabled=${Boolean(this.busy)}
          hint="The adapter is measured on these and never trained on them."
          @files=${({ detail }) => this.#upload(detail.files[0], "heldOut")}></lm-drop>
        <lm-drop label="Documents to compare with, if you have some" accept=".txt,.md,.jsonl" many ?disabled=${Boolean(this.busy)}
          hint="Text, Markdown or JSON Lines with text. Held-out rows are also asked with passages of these, so that you see whether retrieval would do."
          @files=${({ detail }) => this.#uploadDocuments(detail.files)}></lm-drop>
      </div>
      <div class="fields wide">
        ${this.#choice("dataset", "Dataset", "Choose one that is stored…")}
        ${this.#choice("heldOut", "Held-out dataset", "none")}
        ${this.#choice("documents", "Documents", "none")}
      </div>
      ${this.busy ? waiting(this.busy) : nothing}
      ${this.dataset ? this.#checked() : nothing}
    </section>`;
  }

  #choice(which, label, none) {
    return html`<div><label for="job-${which}">${label}</label>
      <select id="job-${which}" .value=${this[which]} @change=${({ target }) => this.#choose(which, target.value)}>
        <option value="">${none}</option>
        ${this.datasets.map(
          ({ id, name, rows, sizeBytes }) => html`<option value=${id} ?selected=${id === this[which]}>
            ${name || id} (${number(Number(rows ?? 0))} rows, ${bytes(sizeBytes ?? 0)})</option>`,
        )}
      </select></div>`;
  }

  #checked() {
    return html`
      ${this.refused ? problem(this.refused) : nothing}
      ${this.report ? html`<lm-report .report=${this.report} @line=${({ detail }) => this.#check(detail)}></lm-report>` : nothing}
      <lm-job-settings .info=${this.info} .models=${this.models} .startable=${Boolean(this.report?.valid) && !this.starting}
        @change=${this.#settled} @start=${this.#start}></lm-job-settings>
    `;
  }

  async #uploadDocuments(files) {
    this.error = null;
    try {
      await this.#upload(await asRows(files), "documents");
    } catch (error) {
      this.error = error;
    }
  }

  async #upload(file, which) {
    this.busy = `Uploading ${file.name}, ${bytes(file.size)}…`;
    this.error = null;
    try {
      const dataset = await upload("TrainingService", "UploadDataset", { name: file.name, size: file.size }, [file]);
      this.datasets = [dataset, ...this.datasets.filter(({ id }) => id !== dataset.id)];
      this.busy = "";
      await this.#choose(which, dataset.id);
    } catch (error) {
      this.error = error;
    } finally {
      this.busy = "";
    }
  }

  #choose(which, id) {
    this[which] = id;
    if (which === "documents") return; // they are checked with the job
    this.report = null;
    return this.#check(0);
  }

  #settled(event) {
    event.stopPropagation();
    this.wanted = event.detail;
    this.#check();
  }

  /** Ask what the server says of the dataset with these settings, and show rows from `line` on. */
  async #check(line = this.#line) {
    const asked = ++this.#asked;
    this.#line = line;
    if (!this.dataset) return;
    const { settings, recipe = "" } = this.wanted;
    const request = { datasetId: this.dataset, settings, recipe, showRows: SHOWN, showFromLine: line };
    if (this.heldOut) request.validationDatasetId = this.heldOut;
    this.busy = "Checking every row…";
    try {
      const report = await call("TrainingService", "ValidateDataset", request);
      if (asked !== this.#asked) return; // the settings were changed meanwhile
      this.report = report;
      this.refused = null;
    } catch (error) {
      if (asked === this.#asked) this.refused = error;
    } finally {
      if (asked === this.#asked) this.busy = "";
    }
  }

  async #start({ detail: { name } }) {
    const { compare, topK, ...wanted } = this.wanted;
    const request = { ...wanted, name, datasetId: this.dataset };
    if (this.heldOut) request.validationDatasetId = this.heldOut;
    if (compare) request.comparePrompt = compare;
    if (this.documents) request.compareDocuments = this.documents;
    if (this.documents && topK) request.compareTopK = Number(topK);
    this.#asked++; // what a check says now is no longer of use
    this.starting = true;
    this.busy = "Starting the job…";
    this.refused = null;
    try {
      const job = await call("TrainingService", "CreateJob", request);
      this.dispatchEvent(new CustomEvent("started", { detail: job }));
    } catch (error) {
      this.refused = error;
    } finally {
      this.starting = false;
      this.busy = "";
    }
  }
}

customElements.define("lm-new-job", NewJob);
