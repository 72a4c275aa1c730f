// What every element of the console is made from.

import { LitElement, html, nothing } from "./vendor/lit/index.js";

export { html, nothing };

/** Lit's element without a shadow root: style.css, labels and ids reach what is inside. */
export class View extends LitElement {
  createRenderRoot() {
    return this;
  }
}

let ids = 0;

/** An id that no other element has, for a label and what it labels. */
export function newId(prefix) {
  return `${prefix}-${++ids}`;
}

/** What went wrong, and a button to try again where that may help. */
export function problem(error, retry) {
  return html`<div class="notice problem" role="alert">
    <p>${error.message}</p>
    ${error.violations?.length > 1
      ? html`<ul>${error.violations.map((v) => html`<li><code>${v.field}</code> ${v.description}</li>`)}</ul>`
      : nothing}
    ${retry ? html`<button type="button" @click=${retry}>Try again</button>` : nothing}
  </div>`;
}

/** There is nothing yet, and what to do about it. */
export function empty(title, next) {
  return html`<div class="notice empty"><p><strong>${title}</strong></p><p>${next}</p></div>`;
}

/** What may be wider than the page, such as a table: it scrolls by itself, with the keyboard too. */
export function scrolling(label, content) {
  return html`<div class="scroll" role="region" tabindex="0" aria-label=${label}>${content}</div>`;
}

/** Something is on its way. */
export function waiting(what) {
  return html`<p class="waiting" role="status">${what}</p>`;
}
