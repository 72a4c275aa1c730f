// What the server's messages say, in words.

import { number } from "./format.js";

/** "validating files" of JOB_STATE_VALIDATING_FILES; `kind` is what the names begin with. */
export function word(name, kind) {
  return (name ?? "").replace(`${kind}_`, "").toLowerCase().replaceAll("_", " ");
}

/** "acme@2 × 0.5 + json", or "the base alone". */
export function stackText(entries = []) {
  if (!entries.length) return "the base alone";
  return entries.map(({ adapter, weight = 1 }) => (weight === 1 ? adapter : `${adapter} × ${number(weight, 3)}`)).join(" + ");
}

/** Seconds since 1970, as answers have times, as a Date. */
export function date(seconds) {
  return new Date(seconds * 1000);
}
