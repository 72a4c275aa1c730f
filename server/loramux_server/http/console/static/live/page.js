// What the server does now, asked each second.

import { call } from "../api.js";
import { bytes, duration, number, percent } from "../format.js";
import { View, empty, html, nothing, problem, scrolling, waiting } from "../view.js";
import "../chart.js";
import { History } from "./history.js";

const EVERY = 1000; // milliseconds
const WINDOW = 5; // seconds that rates and latencies are of
const MEMORY = ["base", "adapters", "kv_cache", "training", "graphs", "other", "free"];
const NAMES = { kv_cache: "KV cache" };
const TIERS = { device: "ADAPTER_TIER_DEVICE", host: "ADAPTER_TIER_HOST" };
const LIST_EVERY = 10; // questions for stats between two for the adapters, which count against quotas
const MOST_NAMED = 12;

class Live extends View {
  static properties = {
    info: { attribute: false },
    stats: { state: true },
    error: { state: true },
    versions: { state: true }, // current versions of the adapters that the key may read
  };

  #history = new History();
  #timer = null;
  #asked = 0;

  constructor() {
    super();
    this.versions = [];
  }

  connectedCallback() {
    super.connectedCallback();
    this.#ask();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    clearTimeout(this.#timer);
  }

  async #ask() {
    clearTimeout(this.#timer);
    if (!document.hidden) {
      try {
        this.stats = await call("ServerService", "GetStats", { windowSeconds: WINDOW });
        this.#history.add(performance.now() / 1000, figuresOf(this.stats));
        if (this.stats.total && this.#asked++ % LIST_EVERY === 0) await this.#list();
        this.error = null;
      } catch (error) {
        this.error = error;
      }
    }
    if (this.isConnected) this.#timer = setTimeout(() => this.#ask(), EVERY);
  }

  async #list() {
    if (!this.info.caller?.scopes?.includes("adapters:read")) return;
    const { adapters = [] } = await call("AdapterService", "ListAdapters", { pageSize: 1000 });
    this.versions = adapters.map(({ current }) => current).filter(Boolean);
  }

  render() {
    const { stats } = this;
    return html`<h1>Live</h1>
      ${this.error ? problem(this.error) : nothing}
      ${stats ? this.#stats(stats, stats.total ?? stats.own) : this.error ? nothing : waiting("Asking the server…")}`;
  }

  #stats(stats, shown) {
    return html`
      <div class="tiles">
        ${this.#tile("Tokens a second", number(shown.generatedTokensPerSecond ?? 0, 1), ["generated", "prompt"], (v) => number(v, 1))}
        ${this.#tile(
          "Requests",
          stats.total
            ? `${number(stats.requestsRunning ?? 0)} running, ${number(stats.requestsWaiting ?? 0)} waiting`
            : `${number(shown.requestsRunning ?? 0)} running`,
          stats.total ? ["running", "waiting"] : ["running"],
          (v) => number(v, 1),
        )}
        ${this.#tile("First token", latency(shown.timeToFirstToken), ["first p50", "first p99"], duration)}
        ${this.#tile("Between tokens", latency(shown.interTokenLatency), ["token p50", "token p99"], duration)}
      </div>
      ${stats.total ? this.#forOperators(stats) : this.#forTenants()}
    `;
  }

  #tile(title, value, lines, written) {
    return html`<section class="card tile" aria-label=${title}>
      <h2>${title}</h2>
      <p class="value number">${value}</p>
      <lm-chart zero least="60" .label="${title} over the last minutes, now ${value}" .lines=${lines}
        .data=${this.#history.columns(...lines)} .x=${ago} .y=${written}></lm-chart>
    </section>`;
  }

  #forTenants() {
    return empty(
      `These are the figures of the tenant ${this.stats.own?.tenant ?? ""}.`,
      "Memory, the queue and other tenants are shown to keys with the scope admin.",
    );
  }

  #forOperators(stats) {
    return html`<div class="blocks">
      ${this.#memory(stats)}
      ${this.#adapters(stats)}
      ${this.#tenants(stats)}
    </div>`;
  }

  #memory({ memoryBytes = {}, kvPagesUsed = 0, kvPagesTotal = 0 }) {
    const sizes = MEMORY.map((kind) => [kind, Number(memoryBytes[kind] ?? 0)]).filter(([, size]) => size > 0);
    const total = sizes.reduce((sum, [, size]) => sum + size, 0);
    if (!total) return html`<section class="card">${waiting("The engine is starting; its memory is not known yet.")}</section>`;
    return html`<section class="card">
      ${scrolling("Memory", html`<table>
        <caption>Memory</caption>
        <thead><tr><th scope="col">Kind</th><th scope="col" class="number">Size</th><th scope="col">Share</th></tr></thead>
        <tbody>
          ${sizes.map(
            ([kind, size]) => html`<tr>
              <th scope="row">${NAMES[kind] ?? kind}</th>
              <td class="number">${bytes(size)}</td>
              <td><meter min="0" max=${total} value=${size} aria-label="Share of ${kind}"></meter> ${percent(size / total)}</td>
            </tr>`,
          )}
        </tbody>
      </table>`)}
      <p class="hint">${number(kvPagesUsed)} of ${number(kvPagesTotal)} pages of the KV cache are in use.</p>
    </section>`;
  }

  #adapters({ adaptersResident = {}, adapterBytes = {}, trainingJobs = 0 }) {
    return html`<section class="card">
      ${scrolling("Resident adapters", html`<table>
        <caption>Resident adapters</caption>
        <thead><tr><th scope="col">Tier</th><th scope="col" class="number">Versions</th><th scope="col" class="number">Size</th><th scope="col">Of yours</th></tr></thead>
        <tbody>
          ${Object.entries(TIERS).map(
            ([tier, word]) => html`<tr>
              <th scope="row">${tier}</th>
              <td class="number">${number(adaptersResident[tier] ?? 0)}</td>
              <td class="number">${bytes(adapterBytes[tier] ?? 0)}</td>
              <td>${this.#named(word)}</td>
            </tr>`,
          )}
        </tbody>
      </table>`)}
      <p class="hint">${trainingJobs ? `${number(trainingJobs)} training now.` : "No job trains now."}</p>
    </section>`;
  }

  /** Current versions in a tier, a few of them by name. */
  #named(tier) {
    const names = this.versions.filter((each) => each.tier === tier).map(({ name, version }) => `${name}@${version}`);
    const more = names.length - MOST_NAMED;
    return names.slice(0, MOST_NAMED).join(", ") + (more > 0 ? ` and ${number(more)} more` : "");
  }

  #tenants({ tenants = [] }) {
    return html`<section class="card wide">
      ${scrolling("Tenants", html`<table>
        <caption>Tenants in the last ${WINDOW} seconds</caption>
        <thead>
          <tr>
            <th scope="col">Tenant</th>
            <th scope="col" class="number">Running</th>
            <th scope="col" class="number">Requests/s</th>
            <th scope="col" class="number">Prompt tokens/s</th>
            <th scope="col" class="number">Tokens/s</th>
            <th scope="col">First token</th>
          </tr>
        </thead>
        <tbody>
          ${tenants.map(
            (each) => html`<tr>
              <th scope="row">${each.tenant}</th>
              <td class="number">${number(each.requestsRunning ?? 0)}</td>
              <td class="number">${number(each.requestsPerSecond ?? 0, 1)}</td>
              <td class="number">${number(each.promptTokensPerSecond ?? 0, 1)}</td>
              <td class="number">${number(each.generatedTokensPerSecond ?? 0, 1)}</td>
              <td>${latency(each.timeToFirstToken)}</td>
            </tr>`,
          )}
        </tbody>
      </table>`)}
      ${tenants.length ? nothing : html`<p class="hint">Nobody asks anything. Send a message in Chat to see it here.</p>`}
    </section>`;
  }
}

/** What the charts show of an answer. */
function figuresOf(stats) {
  const shown = stats.total ?? stats.own;
  const { timeToFirstToken: first, interTokenLatency: token } = shown;
  const seconds = (latency, name) => (Number(latency?.count ?? 0) ? latency[name] : null);
  return {
    generated: shown.generatedTokensPerSecond ?? 0,
    prompt: shown.promptTokensPerSecond ?? 0,
    running: (stats.total ? stats : shown).requestsRunning ?? 0,
    waiting: stats.requestsWaiting ?? 0,
    "first p50": seconds(first, "p50Seconds"),
    "first p99": seconds(first, "p99Seconds"),
    "token p50": seconds(token, "p50Seconds"),
    "token p99": seconds(token, "p99Seconds"),
  };
}

function latency(found) {
  if (!Number(found?.count ?? 0)) return "–";
  return `p50 ${duration(found.p50Seconds)}, p99 ${duration(found.p99Seconds)}`;
}

function ago(seconds) {
  return seconds > -0.5 ? "now" : `−${duration(-seconds)}`;
}

customElements.define("lm-live", Live);
