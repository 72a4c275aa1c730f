// Numbers, sizes and times as the reader's locale writes them.

const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
const made = new Map();

function formatter(kind, options) {
  const key = kind.name + JSON.stringify(options);
  if (!made.has(key)) made.set(key, new kind(undefined, options));
  return made.get(key);
}

/** 12,345.6 with at most so many digits after the point. */
export function number(value, digits = 0) {
  return formatter(Intl.NumberFormat, { maximumFractionDigits: digits }).format(value);
}

/** 97 MB, 1.2 GB. */
export function bytes(value) {
  let unit = 0;
  for (value = Number(value); value >= 1000 && unit < UNITS.length - 1; unit++) value /= 1000;
  const digits = unit > 1 && value < 100 ? 1 : 0;
  const options = { style: "unit", unit: UNITS[unit], unitDisplay: "short", maximumFractionDigits: digits };
  return formatter(Intl.NumberFormat, options).format(value);
}

/** 35% */
export function percent(share, digits = 0) {
  return formatter(Intl.NumberFormat, { style: "percent", maximumFractionDigits: digits }).format(share);
}

/** 350 ms, 1.2 sec, 3 min 5 sec, 2 hr 3 min. */
export function duration(seconds) {
  if (seconds < 1) return unit(seconds * 1000, "millisecond", 0);
  if (seconds < 60) return unit(seconds, "second", 1);
  const whole = Math.round(seconds);
  if (whole < 3600) return `${unit(Math.floor(whole / 60), "minute", 0)} ${unit(whole % 60, "second", 0)}`;
  return `${unit(Math.floor(whole / 3600), "hour", 0)} ${unit(Math.floor((whole % 3600) / 60), "minute", 0)}`;
}

/** The day and time of a moment: a Date, or what makes one. */
export function moment(when) {
  return formatter(Intl.DateTimeFormat, { dateStyle: "medium", timeStyle: "short" }).format(new Date(when));
}

function unit(value, name, digits) {
  const options = { style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits: digits };
  return formatter(Intl.NumberFormat, options).format(value);
}
