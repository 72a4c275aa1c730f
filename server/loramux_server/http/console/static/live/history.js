// The stats of the last minutes, as charts want them.

const SECONDS = 300;

export class History {
  #times = [];
  #columns = new Map();

  /** Remember figures, by name, as of a time in seconds; null is unknown. */
  add(time, figures) {
    this.#times.push(time);
    for (const [name, value] of Object.entries(figures)) {
      if (!this.#columns.has(name)) this.#columns.set(name, this.#times.slice(1).map(() => null));
      this.#columns.get(name).push(value);
    }
    const old = this.#times.findIndex((each) => each >= time - SECONDS);
    this.#times.splice(0, old);
    for (const column of this.#columns.values()) column.splice(0, old);
  }

  /** Seconds before now, and a column for each name. */
  columns(...names) {
    const now = this.#times.at(-1);
    return [this.#times.map((time) => time - now), ...names.map((name) => [...(this.#columns.get(name) ?? [])])];
  }
}
