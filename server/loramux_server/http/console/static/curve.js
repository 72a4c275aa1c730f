// The course of a job's loss, from its events.

import { number } from "./format.js";
import { View, html, nothing } from "./view.js";
import "./chart.js";

class Curve extends View {
  static properties = { events: { attribute: false }, label: {} };

  constructor() {
    super();
    Object.assign(this, { events: [], label: "Loss" });
  }

  render() {
    const { steps, loss, held } = columns(this.events);
    if (!steps.length) return html`<p class="hint">The curve begins with the first step.</p>`;
    const measured = held.some((value) => value !== null);
    const last = [...loss].reverse().find((value) => value !== null);
    const what = `${this.label} by step, ${steps.length} points, last ${last === undefined ? "unknown" : number(last, 3)}`;
    return html`<lm-chart spans .height=${180} .label=${what} .lines=${measured ? ["loss", "held-out loss"] : ["loss"]}
        .data=${measured ? [steps, loss, held] : [steps, loss]} .x=${step} .y=${(value) => number(value, 3)}></lm-chart>
      ${measured ? nothing : html`<p class="hint">Loss by step.</p>`}`;
  }
}

/** Steps, and for each the loss and the held-out loss; null where there is none. */
export function columns(events) {
  const points = new Map();
  for (const { step = 0, type, metrics = {} } of events) {
    const point = points.get(step) ?? { loss: null, held: null };
    if (type === "JOB_EVENT_TYPE_STEP") point.loss = finite(metrics.loss);
    else if (type === "JOB_EVENT_TYPE_EVALUATION") point.held = finite(metrics.eval_loss);
    else continue;
    points.set(step, point);
  }
  const steps = [...points.keys()].sort((a, b) => a - b);
  return {
    steps,
    loss: steps.map((step) => points.get(step).loss),
    held: steps.map((step) => points.get(step).held),
  };
}

/** A step for the axis, which may also have marks between two. */
function step(value) {
  return Number.isInteger(value) ? number(value) : "";
}

/** A number as JSON has it; null for none, and for "NaN". */
function finite(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

customElements.define("lm-curve", Curve);
