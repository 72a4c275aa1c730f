// A dialog with the last request as curl, Python or the OpenAI package.

import { View, html, nothing } from "../view.js";
import { languages } from "./as-code.js";

class CopyRequest extends View {
  static properties = {
    requests: { state: true }, // { label, stack, messages, settings }, one for each stack
    request: { state: true },
    language: { state: true },
    copied: { state: true },
  };

  constructor() {
    super();
    Object.assign(this, { requests: [], request: 0, language: "curl", copied: false });
  }

  /** Show the requests. */
  async show(requests) {
    Object.assign(this, { requests, request: 0, copied: false });
    await this.updateComplete;
    this.querySelector("dialog").showModal();
  }

  get #code() {
    const { stack, messages, settings } = this.requests[this.request];
    return languages[this.language](stack, messages, settings);
  }

  render() {
    return html`<dialog aria-labelledby="copy-title">
      <h2 id="copy-title">Copy the request</h2>
      ${this.requests.length > 1
        ? this.#choice("Stack", this.requests.map(({ label }, i) => [i, label]), "request")
        : nothing}
      ${this.#choice("As", Object.keys(languages).map((name) => [name, name]), "language")}
      ${this.requests.length ? html`<pre tabindex="0" aria-label="The request">${this.#code}</pre>` : nothing}
      <div class="row">
        <button type="button" class="primary" @click=${this.#copy}>Copy</button>
        <button type="button" @click=${() => this.querySelector("dialog").close()}>Close</button>
        <span role="status">${this.copied ? "Copied." : nothing}</span>
      </div>
    </dialog>`;
  }

  #choice(legend, options, property) {
    return html`<fieldset class="row choice">
      <legend class="visually-hidden">${legend}</legend>
      ${options.map(
        ([value, label]) => html`<label class="row">
          <input type="radio" name="copy-${property}" .checked=${this[property] === value}
            @change=${() => Object.assign(this, { [property]: value, copied: false })}>${label}
        </label>`,
      )}
    </fieldset>`;
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.#code);
      this.copied = true;
    } catch {
      // Browsers give the clipboard to pages over HTTPS or of this machine alone: mark the text, for Ctrl-C.
      getSelection().selectAllChildren(this.querySelector("pre"));
    }
  }
}

customElements.define("lm-copy-request", CopyRequest);
