/** Words for numbers, times and states. What is unknown is a dash, never a 0. */

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const bytes = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"].map(
  (unit) => new Intl.NumberFormat("en", { style: "unit", unit, maximumFractionDigits: 1 }),
);
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1, roundingMode: "trunc" });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const clockMinutes = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" });

export const isKnown = (value) => value !== null && value !== undefined;

const unlessUnknown = (format) => (value) => (isKnown(value) ? format(value) : UNKNOWN);

export const word = unlessUnknown(String);
export const count = unlessUnknown((value) => whole.format(value));
export const rate = unlessUnknown((value) => `${(value < 10 ? tenths : whole).format(value)}/s`);
export const share = unlessUnknown((value) => percent.format(value));
export const short = unlessUnknown((value) => compact.format(value));
export const atClock = (date) => clock.format(date);
export const atMinute = (date) => clockMinutes.format(date);
export const inFull = (date) => moment.format(date);

/** A length of time in its two largest units. */
export const duration = unlessUnknown((seconds) => {
  if (seconds < 10) return `${tenths.format(seconds)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return two(s, 60, "min", 1, "s");
  if (s < 86400) return two(s, 3600, "h", 60, "min");
  return two(s, 86400, "d", 3600, "h");
});

function two(seconds, size, unit, smallerSize, smallerUnit) {
  const rest = Math.floor((seconds % size) / smallerSize);
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${smallerUnit}` : ""}`;
}

/** A length of time in one unit, for the marks of an axis. */
export const brief = unlessUnknown((seconds) => {
  const [size, unit] = seconds < 60 ? [1, "s"] : seconds < 3600 ? [60, "min"] : seconds < 86400 ? [3600, "h"] : [86400, "d"];
  return `${tenths.format(seconds / size)} ${unit}`;
});

/** How long ago a moment was, or when it comes; in one unit, so that the text moves seldom. */
export function relative(date, now) {
  const seconds = Math.round((now - date) / 1000);
  const length = Math.abs(seconds);
  if (length < 1) return "just now";
  const words =
    length < 60 ? `${length} s`
    : length < 3600 ? `${Math.floor(length / 60)} min`
    : length < 86400 ? `${Math.floor(length / 3600)} h`
    : `${Math.floor(length / 86400)} d`;
  return seconds > 0 ? `${words} ago` : `in ${words}`;
}

/** Any value of a check with its unit, as text. */
export function measured(value, unit) {
  if (typeof value === "number" && unit === "bytes") {
    const power = Math.min(bytes.length - 1, Math.floor(Math.log10(Math.max(1, value)) / 3));
    return bytes[power].format(value / 1000 ** power);
  }
  return isKnown(value) && unit ? `${anyValue(value)} ${unit}` : anyValue(value);
}

function anyValue(value) {
  if (!isKnown(value)) return UNKNOWN;
  if (typeof value === "number") return (Number.isInteger(value) ? whole : significant).format(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
