// One adapter: its versions, what its name and aliases mean, and what may be done with it.

import { call, download } from "../api.js";
import { bytes, moment, number } from "../format.js";
import { View, html, newId, nothing, problem, scrolling, waiting } from "../view.js";
import { date, word } from "../words.js";
import "../confirm.js";
import "./version.js";

class Adapter extends View {
  static properties = {
    info: { attribute: false },
    name: {},
    adapter: { state: true },
    shown: { state: true }, // the version whose card is shown
    busy: { state: true },
    error: { state: true },
    told: { state: true },
  };

  #id = newId("adapter");
  #retry = null; // what "Try again" does

  constructor() {
    super();
    Object.assign(this, { adapter: null, shown: 0, busy: false, error: null, told: "" });
  }

  willUpdate(changed) {
    if (changed.has("name") && this.name !== this.adapter?.name) {
      Object.assign(this, { adapter: null, shown: 0, error: null, told: "" });
      this.load();
    }
  }

  /** Ask the server what the adapter is now. */
  async load() {
    const name = this.name;
    try {
      const adapter = await call("AdapterService", "GetAdapter", { adapter: name });
      if (name !== this.name) return;
      this.adapter = adapter;
      this.error = null;
    } catch (error) {
      if (name !== this.name) return;
      this.error = error;
      this.#retry = () => this.load();
    }
  }

  #may(scope) {
    return this.info.caller?.scopes?.includes(scope);
  }

  get #writes() {
    return this.#may("adapters:write") && this.adapter.tenant === this.info.caller?.tenant;
  }

  render() {
    return html`<section class="card adapter" aria-labelledby=${this.#id}>
        <div class="row spread">
          <h2 id=${this.#id}>${this.name}</h2>
          <button type="button" class="plain small" @click=${() => this.#tell("closed")}>Close</button>
        </div>
        ${this.error ? problem(this.error, this.#retry) : nothing}
        ${this.adapter ? this.#whole(this.adapter) : this.error ? nothing : waiting(`Asking for ${this.name}…`)}
        <p class="told" role="status">${this.told}</p>
      </section>
      <lm-confirm></lm-confirm>`;
  }

  #whole(adapter) {
    const { versions = [], current, tenant, shared, previousVersion } = adapter;
    const card = versions.find(({ version }) => version === this.shown) ?? current ?? versions[0];
    return html`
      <p class="hint">${tenant ? `Of the tenant ${tenant}.` : "Shared with all tenants by the operator."}
        ${shared && tenant ? "Shared with all tenants." : nothing}</p>
      <div class="row">
        ${previousVersion && this.#writes
          ? html`<button type="button" ?disabled=${this.busy} @click=${() => this.#promote(previousVersion)}>Roll back to v${previousVersion}</button>`
          : nothing}
        ${this.#may("admin") ? this.#sharing(adapter) : nothing}
        ${this.#writes
          ? html`<button type="button" class="danger" ?disabled=${this.busy} @click=${this.#delete}>Delete ${this.name}</button>`
          : nothing}
      </div>
      ${scrolling(`Versions of ${this.name}`, html`<table>
        <caption>Versions</caption>
        <thead>
          <tr><th scope="col">Version</th><th scope="col">Published</th><th scope="col">From</th><th scope="col" class="number">Size</th><th scope="col">Actions</th></tr>
        </thead>
        <tbody>${versions.map((version) => this.#version(version, current))}</tbody>
      </table>`)}
      ${this.#writes ? this.#aliases(adapter) : nothing}
      ${card ? html`<lm-version .info=${this.info} .version=${card}></lm-version>` : nothing}
    `;
  }

  #version(version, current) {
    const number = version.version;
    const isCurrent = number === current?.version;
    const ready = version.state === "ADAPTER_STATE_READY";
    const aliases = Object.entries(this.adapter.aliases ?? {}).filter(([, at]) => at === number);
    return html`<tr>
      <th scope="row">
        <button type="button" class="link" aria-label="Show version ${number}" @click=${() => (this.shown = number)}>v${number}</button>
        ${isCurrent ? html`<span class="badge good">current</span>` : nothing}
        ${aliases.map(([alias]) => html`<span class="badge">@${alias}</span>`)}
        ${ready ? nothing : html`<span class="badge bad">${word(version.state, "ADAPTER_STATE")}</span>`}
        ${version.gateResult ? html`<span class="badge warn">candidate</span>` : nothing}
      </th>
      <td>${moment(date(version.createdAt))}</td>
      <td>${origin(version)}</td>
      <td class="number">${bytes(version.sizeBytes)}</td>
      <td class="actions">
        ${this.#writes && ready && !isCurrent
          ? html`<button type="button" class="small" ?disabled=${this.busy} aria-label="Promote version ${number}"
              @click=${() => this.#promote(number)}>Promote</button>`
          : nothing}
        <button type="button" class="small" ?disabled=${this.busy} aria-label="Download version ${number}"
          @click=${() => this.#download(number)}>Download</button>
        ${this.#writes && !isCurrent
          ? html`<button type="button" class="small danger" ?disabled=${this.busy} aria-label="Delete version ${number}"
              @click=${() => this.#deleteVersion(number)}>Delete</button>`
          : nothing}
      </td>
    </tr>`;
  }

  #sharing({ shared, tenant }) {
    if (shared) return html`<button type="button" ?disabled=${this.busy} @click=${this.#unshare}>Take back from all tenants</button>`;
    if (tenant !== this.info.caller?.tenant) return nothing;
    return html`<button type="button" ?disabled=${this.busy} @click=${this.#share}>Share with all tenants</button>`;
  }

  #aliases({ versions = [], aliases = {} }) {
    return html`<form class="row aliases" @submit=${this.#alias}>
      <label for="${this.#id}-alias">Alias</label>
      <input id="${this.#id}-alias" name="alias" required autocomplete="off" placeholder="prod" pattern="[a-z][a-z0-9._\\-]*">
      <label for="${this.#id}-version">means version</label>
      <select id="${this.#id}-version" name="version">
        ${versions.map(({ version }) => html`<option value=${version}>v${version}</option>`)}
      </select>
      <button ?disabled=${this.busy}>Set</button>
      ${Object.keys(aliases).map(
        (alias) => html`<button type="button" class="small" ?disabled=${this.busy}
          @click=${() => this.#set({ alias, version: 0 }, `@${alias} is removed.`)}>Remove @${alias}</button>`,
      )}
    </form>`;
  }

  #alias(event) {
    event.preventDefault();
    const { alias, version } = Object.fromEntries(new FormData(event.target));
    this.#set({ alias, version: Number(version) }, `@${alias} means version ${version} now.`);
    event.target.reset();
  }

  #promote(version) {
    this.#set({ version }, `${this.name} means version ${version} now.`);
  }

  #set(where, told) {
    return this.#do(() => call("AdapterService", "SetAlias", { name: this.name, ...where }), told);
  }

  #share() {
    return this.#do(() => call("AdapterService", "ShareAdapter", { adapter: this.name }), `${this.name} is shared now.`);
  }

  async #unshare() {
    const consequence = "Other tenants can no longer use it. Requests that run now end as they are.";
    if (!(await this.#confirm(`Take ${this.name} back from all tenants?`, consequence, "Take back"))) return;
    await this.#do(() => call("AdapterService", "UnshareAdapter", { name: this.name }), `${this.name} is no longer shared.`);
    if (this.error?.status === 404) this.#tell("gone"); // it was another tenant's, and is out of sight now
  }

  async #delete() {
    const count = this.adapter.versions?.length ?? 0;
    const consequence = `All versions of it (${number(count)}) are deleted for good. Requests that name it are refused from then on.`;
    if (!(await this.#confirm(`Delete ${this.name}?`, consequence, "Delete"))) return;
    if (await this.#do(() => call("AdapterService", "DeleteAdapter", { adapter: this.name }), "", false)) this.#tell("gone");
  }

  async #deleteVersion(version) {
    const ref = `${this.name}@${version}`;
    if (!(await this.#confirm(`Delete ${ref}?`, "The version is deleted for good; the others stay.", "Delete"))) return;
    await this.#do(() => call("AdapterService", "DeleteAdapter", { adapter: ref }), `Version ${version} is deleted.`);
  }

  #download(version) {
    const ref = `${this.name}@${version}`;
    this.told = `Downloading ${ref}…`;
    return this.#do(() => download("AdapterService", "DownloadAdapter", { adapter: ref }, `${ref}.zip`), `${ref} is downloaded.`, false);
  }

  /** Do something, and show how it went. Gives whether it went well. */
  async #do(work, told, changes = true) {
    this.busy = true;
    try {
      await work();
      this.error = null;
      this.told = told;
      if (changes) {
        await this.load();
        this.#tell("changed");
      }
      return true;
    } catch (error) {
      this.error = error;
      this.#retry = null;
      this.told = "";
      return false;
    } finally {
      this.busy = false;
    }
  }

  #confirm(...words) {
    return this.querySelector("lm-confirm").ask(...words);
  }

  #tell(what) {
    this.dispatchEvent(new CustomEvent(what));
  }
}

function origin({ jobId, composed, parent }) {
  if (composed) return "a merge";
  if (jobId) return parent ? `training from ${parent}` : "training";
  return "an upload";
}

customElements.define("lm-adapter", Adapter);
