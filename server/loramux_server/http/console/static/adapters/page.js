// The adapters that the caller may use, and one of them as a whole.

import { call } from "../api.js";
import { bytes, moment, number } from "../format.js";
import { View, empty, html, nothing, problem, scrolling, waiting } from "../view.js";
import { date, word } from "../words.js";
import "./adapter.js";
import "./merge.js";
import "./upload.js";

const PAGE = 50;
const PAUSE = 200; // milliseconds without a key before the server is asked

class Adapters extends View {
  static properties = {
    info: { attribute: false },
    adapters: { state: true },
    next: { state: true }, // the token of the page that follows
    prefix: { state: true },
    chosen: { state: true },
    tool: { state: true }, // "", "upload", "merge"
    error: { state: true },
    told: { state: true },
  };

  #asked = 0;
  #timer = null;

  constructor() {
    super();
    Object.assign(this, { adapters: null, next: "", prefix: "", chosen: "", tool: "", error: null, told: "" });
  }

  connectedCallback() {
    super.connectedCallback();
    this.querySelector("lm-adapter")?.load(); // shown again: a job may have published meanwhile
    this.#list();
  }

  get #scopes() {
    return this.info.caller?.scopes ?? [];
  }

  async #list(pageToken = "") {
    const asked = ++this.#asked;
    try {
      const request = { prefix: this.prefix, pageSize: PAGE, pageToken };
      const { adapters = [], nextPageToken = "" } = await call("AdapterService", "ListAdapters", request);
      if (asked !== this.#asked) return; // something else was typed meanwhile
      this.adapters = pageToken ? [...this.adapters, ...adapters] : adapters;
      this.next = nextPageToken;
      this.error = null;
    } catch (error) {
      if (asked === this.#asked) this.error = error;
    }
  }

  render() {
    const writes = this.#scopes.includes("adapters:write");
    return html`
      <div class="row spread">
        <h1>Adapters</h1>
        ${writes ? html`<div class="row">${this.#switch("upload", "Upload")} ${this.#switch("merge", "Merge a stack")}</div>` : nothing}
      </div>
      ${this.tool === "upload" ? html`<lm-adapter-upload class="card" @published=${this.#published}></lm-adapter-upload>` : nothing}
      ${this.tool === "merge" ? html`<lm-adapter-merge class="card" .info=${this.info} @published=${this.#published}></lm-adapter-merge>` : nothing}
      <div class="adapters ${this.chosen ? "two" : ""}">
        <section class="card" aria-label="List of adapters">
          <label for="adapter-prefix">Find by the beginning of the name</label>
          <input id="adapter-prefix" type="search" autocomplete="off" spellcheck="false" .value=${this.prefix} @input=${this.#typed}>
          ${this.error ? problem(this.error, () => this.#list()) : this.adapters ? this.#table() : waiting("Asking the server…")}
        </section>
        ${this.chosen
          ? html`<lm-adapter .info=${this.info} .name=${this.chosen} @changed=${() => this.#list()} @gone=${this.#gone}
              @closed=${this.#close}></lm-adapter>`
          : nothing}
      </div>
      <div class="visually-hidden" role="status">${this.told}</div>
    `;
  }

  #switch(tool, title) {
    return html`<button type="button" aria-expanded=${this.tool === tool} @click=${() => (this.tool = this.tool === tool ? "" : tool)}>
      ${title}
    </button>`;
  }

  #table() {
    if (!this.adapters.length) {
      return this.prefix
        ? empty(`No adapter's name begins with “${this.prefix}”.`, "Search for another beginning.")
        : empty("There is no adapter yet.", "Train one on the page Training, or upload a folder in PEFT's format here.");
    }
    return html`${scrolling("Adapters", html`<table>
        <caption class="visually-hidden">Adapters</caption>
        <thead>
          <tr>
            <th scope="col">Name</th><th scope="col">Current</th><th scope="col" class="number">Rank</th>
            <th scope="col" class="number">Size</th><th scope="col">Where</th>
            ${this.chosen ? nothing : html`<th scope="col">Changed</th>`}
          </tr>
        </thead>
        <tbody>${this.adapters.map((adapter) => this.#row(adapter))}</tbody>
      </table>`)}
      ${this.next ? html`<button type="button" @click=${() => this.#list(this.next)}>Show more</button>` : nothing}`;
  }

  #row({ name, current, shared, updatedAt, aliases = {} }) {
    return html`<tr class=${name === this.chosen ? "chosen" : ""}>
      <th scope="row">
        <button type="button" class="link" aria-current=${name === this.chosen ? "true" : nothing}
          @click=${() => (this.chosen = name)}>${name}</button>
        ${shared ? html`<span class="badge">shared</span>` : nothing}
        ${Object.keys(aliases).map((alias) => html`<span class="badge">@${alias}</span>`)}
      </th>
      <td>${current ? `v${current.version}` : html`<span class="warn">none usable</span>`}</td>
      <td class="number">${current ? number(current.rank) : "–"}</td>
      <td class="number">${current ? bytes(current.sizeBytes) : "–"}</td>
      <td>${current ? word(current.tier, "ADAPTER_TIER") || "–" : "–"}${current?.pinned ? ", pinned" : ""}</td>
      ${this.chosen ? nothing : html`<td class="when">${moment(date(updatedAt))}</td>`}
    </tr>`;
  }

  #typed({ target }) {
    this.prefix = target.value;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#list(), PAUSE);
  }

  #published({ detail: version }) {
    this.tool = "";
    this.prefix = "";
    this.chosen = version.name;
    this.told = `${version.name} version ${version.version} is published.`;
    this.querySelector("lm-adapter")?.load();
    this.#list();
  }

  #gone() {
    this.told = `${this.chosen} is deleted.`;
    this.#close();
    this.#list();
  }

  #close() {
    this.chosen = "";
    this.querySelector("#adapter-prefix").focus();
  }
}

customElements.define("lm-adapters", Adapters);
