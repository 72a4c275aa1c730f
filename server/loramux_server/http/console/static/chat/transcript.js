// What was said with one stack, as text and nothing else.

import { duration, number } from "../format.js";
import { View, html, nothing, problem } from "../view.js";

class Transcript extends View {
  static properties = { turns: { attribute: false }, label: {}, again: { attribute: false } };

  render() {
    return html`<ol class="turns" aria-label="Conversation with ${this.label}">
      ${this.turns.map((turn, i) => (turn.role === "user" ? this.#question(turn) : this.#answer(turn, i)))}
    </ol>`;
  }

  #question(turn) {
    return html`<li class="turn user"><span class="who">You</span><div class="said">${turn.content}</div></li>`;
  }

  #answer(turn, i) {
    const last = i === this.turns.length - 1;
    return html`<li class="turn assistant" aria-busy=${turn.state === "running"}>
      <span class="who">${turn.model || turn.label}</span>
      ${turn.thoughts ? html`<details class="thoughts"><summary>Thoughts</summary><div class="said">${turn.thoughts}</div></details>` : nothing}
      ${turn.content || !turn.error ? html`<div class="said">${turn.content}</div>` : nothing}
      ${turn.error ? problem(turn.error, last ? this.again : null) : nothing}
      <p class="figures number">${figures(turn)}</p>
    </li>`;
  }
}

/** 24 tokens · first after 80 ms · 12.5 tokens/s */
function figures({ state, figures, stopped, finish, error }) {
  if (state === "running") return "…";
  if (error) return nothing;
  const { tokens, prompt, first, seconds } = figures;
  const parts = [];
  if (stopped) parts.push(`Stopped after ${duration(seconds)}`);
  if (finish === "length") parts.push("Cut at the most tokens");
  if (tokens !== undefined) parts.push(`${number(prompt)} + ${number(tokens)} tokens`);
  if (first !== null) parts.push(`first after ${duration(first)}`);
  if (tokens > 1 && seconds > first) parts.push(`${number((tokens - 1) / (seconds - first), 1)} tokens/s`);
  return parts.join(" · ");
}

customElements.define("lm-transcript", Transcript);
