// The shell: who looks, which page is shown, and how one moves between them.

import { call } from "./api.js";
import { pages } from "./pages.js";
import { session } from "./session.js";
import { View, empty, html, nothing, problem, waiting } from "./view.js";
import "./sign-in.js";

const STARTING = ["STARTING", "LOADING", "WARMING"].map((state) => `SERVER_STATE_${state}`);
const AGAIN = 1500; // milliseconds between two questions whether the server is ready

class App extends View {
  static properties = {
    phase: { state: true }, // loading, sign-in, failed, ready
    info: { state: true },
    error: { state: true },
    page: { state: true },
    shown: { state: true }, // the page's element, once its module is loaded
  };

  #elements = new Map();

  constructor() {
    super();
    this.phase = "loading";
    this.#follow();
  }

  connectedCallback() {
    super.connectedCallback();
    addEventListener("hashchange", () => this.#follow(true));
    session.addEventListener("refused", ({ detail }) => this.#signIn(session.key ? detail : null));
    this.#connect();
  }

  async #connect() {
    try {
      this.info = await call("ServerService", "GetServerInfo");
    } catch (error) {
      if (error.status === 401) return; // the session has told: the sign-in is shown
      this.error = error;
      this.phase = "failed";
      return;
    }
    this.error = null;
    this.phase = STARTING.includes(this.info.state) ? "loading" : "ready";
    if (this.phase === "loading") setTimeout(() => this.#connect(), AGAIN);
    else await this.#show();
  }

  #signIn(error) {
    for (const element of this.#elements.values()) element.close?.();
    this.#elements.clear();
    this.shown = null;
    this.error = error;
    session.key = "";
    this.phase = "sign-in";
  }

  #withKey({ detail }) {
    session.key = detail;
    this.#connect();
  }

  #follow(moved = false) {
    const wanted = location.hash.replace(/^#\//, "");
    this.page = pages.find((page) => page.path === wanted) ?? pages[0];
    document.title = `${this.page.title} · loramux`;
    if (this.phase === "ready") this.#show(moved);
  }

  get #allowed() {
    return !this.page.scope || this.info.caller?.scopes?.includes(this.page.scope);
  }

  async #show(moved = false) {
    const page = this.page;
    this.shown = this.#elements.get(page.path);
    if (!this.shown && this.#allowed) {
      try {
        await page.load();
      } catch {
        this.error = new Error(`The page ${page.title} could not be loaded. Load the console again.`);
        this.phase = "failed";
        return;
      }
      const element = document.createElement(page.element);
      this.#elements.set(page.path, element);
      if (page === this.page) this.shown = element;
    }
    if (this.shown) this.shown.info = this.info;
    await this.updateComplete;
    if (moved) this.querySelector("main").focus();
  }

  render() {
    return html`
      <a class="skip" href="#main" @click=${this.#skip}>Skip to content</a>
      <header class="bar">
        <span class="brand"><img src="console/icon.svg" alt="" width="24" height="24">loramux</span>
        ${this.phase === "ready" ? this.#navigation() : nothing}
      </header>
      <main id="main" tabindex="-1">${this.#content()}</main>
    `;
  }

  #navigation() {
    const { caller } = this.info;
    const links = pages.map(
      (page) => html`<a href="#/${page.path}" aria-current=${page === this.page ? "page" : nothing}>${page.title}</a>`,
    );
    return html`
      <nav aria-label="Pages">${links}</nav>
      <span class="account">
        <span class="tenant" title="Tenant">${caller?.tenant}</span>
        ${session.key ? html`<button type="button" @click=${() => this.#signIn(null)}>Sign out</button>` : nothing}
      </span>
    `;
  }

  #content() {
    switch (this.phase) {
      case "loading":
        return waiting(this.info ? "The server is starting. This page goes on when it is ready." : "Asking the server…");
      case "sign-in":
        return html`<lm-sign-in .error=${this.error} @key=${this.#withKey}></lm-sign-in>`;
      case "failed":
        return problem(this.error, () => {
          this.phase = "loading";
          this.#connect();
        });
    }
    if (this.#allowed) return this.shown ?? waiting(`Loading ${this.page.title}…`);
    return html`<h1>${this.page.title}</h1>
      ${empty(
        `Your key does not have the scope ${this.page.scope}, which this page needs.`,
        "Ask the operator for a key that has it, then sign out and sign in with that one.",
      )}`;
  }

  #skip(event) {
    event.preventDefault(); // the hash names the page
    this.querySelector("main").focus();
  }
}

customElements.define("lm-app", App);
