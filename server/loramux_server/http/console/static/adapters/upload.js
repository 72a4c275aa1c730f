// Publishes a PEFT folder.

import { upload } from "../api.js";
import { bytes } from "../format.js";
import { View, html, nothing, problem } from "../view.js";
import "../drop.js";

const NEEDED = ["adapter_config.json", "adapter_model.safetensors"];
const TAKEN = [...NEEDED, "README.md"];

class Upload extends View {
  static properties = {
    files: { state: true },
    left: { state: true }, // names of files that no adapter has
    name: { state: true },
    busy: { state: true },
    error: { state: true },
  };

  constructor() {
    super();
    Object.assign(this, { files: [], left: [], name: "", busy: false, error: null });
  }

  get #missing() {
    return NEEDED.filter((name) => !this.files.some((file) => file.name === name));
  }

  render() {
    const size = this.files.reduce((sum, file) => sum + file.size, 0);
    return html`<form class="stacked" aria-label="Upload an adapter" @submit=${this.#send}>
      <h2>Upload an adapter</h2>
      <lm-drop many label="A PEFT folder, or its files" ?disabled=${this.busy}
        hint="Drop the folder here, or choose ${NEEDED.join(" and ")}; a README.md becomes its card." @files=${this.#chosen}></lm-drop>
      ${this.files.length
        ? html`<p>${this.files.map(({ name }) => name).join(", ")}: ${bytes(size)}.
            ${this.left.length ? html`<span class="muted">Not part of an adapter, left out: ${this.left.join(", ")}.</span>` : nothing}</p>`
        : nothing}
      ${this.files.length && this.#missing.length
        ? html`<p class="bad" role="alert">${this.#missing.join(" and ")} ${this.#missing.length > 1 ? "are" : "is"} missing. Choose
            the files of a folder that PEFT saved with safe_serialization=True.</p>`
        : nothing}
      <div class="fields">
        <div><label for="upload-name">Name</label>
          <input id="upload-name" required autocomplete="off" spellcheck="false" pattern="[a-z0-9][a-z0-9._\\-]*" maxlength="64"
            title="a to z, 0 to 9, '.', '_' and '-'" .value=${this.name} @input=${({ target }) => (this.name = target.value)}></div>
      </div>
      <label class="row"><input type="checkbox" name="current" checked> The name means this version at once</label>
      ${this.error ? problem(this.error) : nothing}
      <div class="row">
        <button class="primary" ?disabled=${this.busy || !this.files.length || this.#missing.length > 0}>Publish</button>
        ${this.busy ? html`<span role="status">Uploading ${bytes(size)}…</span>` : nothing}
      </div>
    </form>`;
  }

  #chosen({ detail: { files, folder } }) {
    this.files = files.filter(({ name }) => TAKEN.includes(name));
    this.left = files.filter(({ name }) => !TAKEN.includes(name)).map(({ name }) => name);
    this.error = null;
    if (!this.files.length) this.files = files.slice(0, 1); // shown, with what is missing
    if (!this.name && folder) this.name = folder.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 64);
  }

  async #send(event) {
    event.preventDefault();
    const setCurrent = event.target.elements.current.checked;
    this.busy = true;
    this.error = null;
    try {
      const header = { name: this.name, setCurrent, files: this.files.map(({ name, size }) => ({ name, size })) };
      const version = await upload("AdapterService", "UploadAdapter", header, this.files);
      this.dispatchEvent(new CustomEvent("published", { detail: version }));
    } catch (error) {
      this.error = error;
    } finally {
      this.busy = false;
    }
  }
}

customElements.define("lm-adapter-upload", Upload);
