// A place to drop files on, or a folder, which is a button to choose them too.

import { View, html, newId, nothing } from "./view.js";

class Drop extends View {
  static properties = {
    label: {}, // what the place is for
    hint: {}, // what may be dropped
    accept: {}, // endings that the choice shows, such as ".jsonl"
    many: { type: Boolean }, // several files, or the files of a folder
    disabled: { type: Boolean },
    over: { state: true },
  };

  #id = newId("drop");

  constructor() {
    super();
    Object.assign(this, { label: "", hint: "", accept: "", many: false, disabled: false, over: false });
  }

  render() {
    return html`<div class="drop ${this.over ? "over" : ""}" @dragover=${this.#over} @dragleave=${() => (this.over = false)}
      @drop=${this.#dropped}>
      <label for=${this.#id}>${this.label}</label>
      <input id=${this.#id} type="file" accept=${this.accept || nothing} ?multiple=${this.many} ?disabled=${this.disabled}
        aria-describedby="${this.#id}-hint" @change=${this.#chosen}>
      <p class="hint" id="${this.#id}-hint">${this.hint}</p>
    </div>`;
  }

  #over(event) {
    event.preventDefault();
    this.over = !this.disabled;
  }

  async #dropped(event) {
    event.preventDefault();
    this.over = false;
    if (this.disabled) return;
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const folder = entries.length === 1 && entries[0].isDirectory ? entries[0] : null;
    const files = folder ? await filesOf(folder) : [...event.dataTransfer.files];
    this.#give(files, folder?.name ?? "");
  }

  #chosen({ target }) {
    const files = [...target.files];
    target.value = ""; // the same file can be chosen again once it was mended
    if (files.length) this.#give(files, "");
  }

  #give(files, folder) {
    this.dispatchEvent(new CustomEvent("files", { detail: { files: this.many ? files : files.slice(0, 1), folder } }));
  }
}

/** The files of a dropped folder, not those of folders in it. */
async function filesOf(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    entries.push(...some);
  }
  const files = entries.filter((entry) => entry.isFile);
  return Promise.all(files.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))));
}

customElements.define("lm-drop", Drop);
