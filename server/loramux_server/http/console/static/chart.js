// A chart of a few lines, drawn by uPlot in the colours of the page.

import uPlot from "./vendor/uplot/uPlot.js";
import { number } from "./format.js";
import { View, html } from "./view.js";

const FEW = 25; // values of a line that are dots
const DARK = matchMedia("(prefers-color-scheme: dark)");

class Chart extends View {
  static properties = {
    data: { attribute: false }, // [xs, ys of the first line, ys of the second, ...]; null is a gap
    lines: { attribute: false }, // names of the lines
    label: {}, // what screen readers are told in place of the picture
    height: { type: Number },
    least: { type: Number }, // how much of the horizontal axis is shown at least, before the last value
    zero: { type: Boolean }, // the axis begins at 0
    spans: { type: Boolean }, // lines go on over gaps, and a few values are dots too
    x: { attribute: false }, // writes a value of the horizontal axis, (value) => text
    y: { attribute: false }, // writes a value of the vertical axis
  };

  #plot = null;
  #drawn = ""; // the lines that the plot has
  #resize = new ResizeObserver(() => this.#fit());
  #recolour = () => this.#draw();

  constructor() {
    super();
    Object.assign(this, { data: [[]], lines: [], height: 120, least: 0, x: (value) => number(value), y: (value) => number(value, 2) });
  }

  connectedCallback() {
    super.connectedCallback();
    DARK.addEventListener("change", this.#recolour);
    this.#resize.observe(this);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    DARK.removeEventListener("change", this.#recolour);
    this.#resize.disconnect();
  }

  render() {
    return html`<div class="plot" role="img" aria-label=${this.label}></div>
      ${this.lines.length > 1
        ? html`<div class="legend" aria-hidden="true">
            ${this.lines.map((line, i) => html`<span class="series-${i + 1}">${line}</span>`)}
          </div>`
        : ""}`;
  }

  updated() {
    if (this.#plot && this.#drawn === this.lines.join("\n")) this.#plot.setData(this.data);
    else this.#draw();
  }

  #fit() {
    const width = this.clientWidth;
    if (this.#plot && width && width !== this.#plot.width) this.#plot.setSize({ width, height: this.height });
  }

  #draw() {
    const place = this.querySelector(".plot");
    if (!place || !this.lines.length) return;
    this.#plot?.destroy();
    this.#drawn = this.lines.join("\n");
    const style = getComputedStyle(this);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    this.#plot = new uPlot(
      {
        width: this.clientWidth || 300,
        height: this.height,
        padding: [8, 18, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, range: (_, from, to) => [Math.min(from, to - this.least), to] }, y: this.zero ? { range: (_, __, most) => [0, most > 0 ? most * 1.05 : 1] } : {} },
        axes: [
          { ...axis, size: 22, space: 70, values: (_, splits) => splits.map((value) => this.x(value)) },
          { ...axis, size: 52, space: 30, values: (_, splits) => splits.map((value) => this.y(value)) },
        ],
        series: [
          {},
          ...this.lines.map((label, i) => ({
            label,
            stroke: colour(`--series-${i + 1}`),
            width: 2,
            spanGaps: this.spans,
            points: { show: (plot, at) => this.spans && plot.data[at].filter((value) => value !== null).length < FEW },
          })),
        ],
      },
      this.data,
      place,
    );
  }
}

customElements.define("lm-chart", Chart);
