// What the server says of a dataset: problems by line, notes, the estimate, and rows with what is learned marked.

import { bytes, duration, number } from "../format.js";
import { View, html, nothing, scrolling } from "../view.js";

class Report extends View {
  static properties = { report: { attribute: false } };

  render() {
    const { valid, summary = {}, rows = [] } = this.report;
    return html`<div class="report stacked">
      <p role="status" class=${valid ? "good" : "bad"}>${this.#verdict()}</p>
      ${this.#problems()}
      ${summary.notes?.length
        ? html`<div><h3>Notes</h3><ul>${summary.notes.map(({ text, line }) => html`<li>${Number(line ?? 0) ? `Line ${line}: ` : nothing}${text}</li>`)}</ul></div>`
        : nothing}
      ${Number(summary.rows ?? 0) ? this.#estimate(summary) : nothing}
      ${rows.length ? this.#rows(rows) : nothing}
    </div>`;
  }

  #verdict() {
    const { valid, problemsTotal = 0, summary = {} } = this.report;
    const rows = number(Number(summary.rows ?? 0));
    if (valid) return `All rows can be learned: ${rows}.`;
    const count = Number(problemsTotal);
    return `${number(count)} ${count === 1 ? "problem keeps" : "problems keep"} this file from being learned. Mend ${
      count === 1 ? "it" : "them"
    } and drop the file again; ${rows} rows are good.`;
  }

  #problems() {
    const { problems = [], problemsTotal = 0 } = this.report;
    if (!problems.length) return nothing;
    const left = Number(problemsTotal) - problems.length;
    return html`${scrolling("Problems", html`<table>
        <caption>Problems</caption>
        <thead><tr><th scope="col" class="number">Line</th><th scope="col">Field</th><th scope="col">Problem</th></tr></thead>
        <tbody>
          ${problems.map(
            ({ line = 0, field, description, inList }) => html`<tr>
              <td class="number">${Number(line) ? `${inList ? "row " : ""}${number(Number(line))}` : "–"}</td>
              <td>${field ? html`<code>${field}</code>` : "–"}</td>
              <td>${description}</td>
            </tr>`,
          )}
        </tbody>
      </table>`)}
      ${left > 0 ? html`<p class="hint">${number(left)} more are not listed.</p>` : nothing}`;
  }

  #estimate(summary) {
    const { rows, tokens = 0, trainedTokens = 0, longestTokens = 0, duplicates = 0, estimatedSteps = 0 } = summary;
    const facts = [
      ["Rows", number(Number(rows)) + (summary.pairs ? " preference pairs" : "")],
      ["Tokens", `${number(Number(tokens))}, ${number(Number(trainedTokens))} of them learned`],
      ["Longest row", `${number(longestTokens)} tokens`],
      ["Copies", number(Number(duplicates))],
      ["Steps", number(estimatedSteps)],
      ["Time", summary.estimatedSeconds === undefined ? "not known" : `about ${duration(summary.estimatedSeconds)}`],
      ["Memory", summary.estimatedMemoryBytes === undefined ? "not known" : `${bytes(summary.estimatedMemoryBytes)} more`],
    ];
    return html`<div>
      <h3>Estimate</h3>
      <dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      ${summary.estimatedFrom ? html`<p class="hint">${summary.estimatedFrom}</p>` : nothing}
    </div>`;
  }

  #rows(rows) {
    const after = Number(rows.at(-1).line ?? 0) + 1;
    return html`<div>
      <div class="row spread">
        <h3>What is learned</h3>
        <div class="row">
          <button type="button" class="small" @click=${() => this.#show(0)}>First rows</button>
          <button type="button" class="small" @click=${() => this.#show(after)}>Next rows</button>
        </div>
      </div>
      <p class="hint">Marked text is learned; the rest is only read.</p>
      ${rows.map(
        ({ line, tokens, text = [], rejected = [] }) => html`<figure class="marked">
          <figcaption class="hint">Line ${line}, ${number(tokens)} tokens${rejected.length ? ", the answer that is preferred" : ""}</figcaption>
          ${marked(text)}
          ${rejected.length ? html`<figcaption class="hint">The answer that is preferred less</figcaption>${marked(rejected)}` : nothing}
        </figure>`,
      )}
    </div>`;
  }

  #show(line) {
    this.dispatchEvent(new CustomEvent("line", { detail: line }));
  }
}

/** Text with its learned parts marked. No space may come between the parts. */
function marked(parts) {
  return html`<pre class="text">${parts.map(({ text, trained }) => (trained ? html`<mark>${text}</mark>` : html`<span>${text}</span>`))}</pre>`;
}

customElements.define("lm-report", Report);
