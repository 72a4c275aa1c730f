// Asks before something is done that cannot be undone.

import { View, html, newId } from "./view.js";

class Confirm extends View {
  static properties = { question: { state: true }, consequence: { state: true }, action: { state: true } };

  #id = newId("confirm");
  #answer = () => {};

  /** Whether the reader wants it: `await confirm.ask("Delete acme?", "Requests for it fail.", "Delete")`. */
  async ask(question, consequence, action) {
    Object.assign(this, { question, consequence, action });
    await this.updateComplete;
    const dialog = this.querySelector("dialog");
    dialog.returnValue = "";
    dialog.showModal();
    this.querySelector("[value='']").focus(); // Enter by mistake changes nothing
    return new Promise((resolve) => (this.#answer = resolve));
  }

  render() {
    return html`<dialog aria-labelledby=${this.#id} @close=${this.#closed}>
      <form method="dialog">
        <h2 id=${this.#id}>${this.question}</h2>
        <p>${this.consequence}</p>
        <div class="row">
          <button class="danger" value="yes">${this.action}</button>
          <button value="">Leave it</button>
        </div>
      </form>
    </dialog>`;
  }

  #closed({ target }) {
    this.#answer(target.returnValue === "yes");
  }
}

customElements.define("lm-confirm", Confirm);
