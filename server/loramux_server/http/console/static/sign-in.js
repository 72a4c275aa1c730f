// Asks for the API key.

import { View, html, nothing, problem } from "./view.js";

class SignIn extends View {
  static properties = { error: { attribute: false } };

  firstUpdated() {
    this.querySelector("input").focus();
  }

  render() {
    return html`<form class="card sign-in" @submit=${this.#submit}>
      <h1>Sign in</h1>
      <p>This server asks for an API key. It is kept in this tab alone, until you close it or sign out.</p>
      ${this.error ? problem(this.error) : nothing}
      <label for="key">API key</label>
      <input id="key" name="key" type="password" autocomplete="off" spellcheck="false" required>
      <button class="primary">Sign in</button>
      <p class="hint">Operators make keys with <code>loramux keys create</code>.</p>
    </form>`;
  }

  #submit(event) {
    event.preventDefault();
    const field = this.querySelector("input");
    const key = field.value.trim();
    field.value = "";
    if (key) this.dispatchEvent(new CustomEvent("key", { detail: key }));
  }
}

customElements.define("lm-sign-in", SignIn);
