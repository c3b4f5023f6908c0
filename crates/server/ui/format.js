// Numbers for people. Whatever is not a finite number becomes a dash.

const NONE = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** A number that may be missing, as one that can be added up. */
export const orZero = (value) => (isNumber(value) && value > 0 ? value : 0);

/** Bytes in binary units, three digits: "2.70 GiB". */
export function bytes(value) {
  if (!isNumber(value)) return NONE;
  let unit = 0;
  while (Math.abs(value) >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(value) : digits(value)} ${UNITS[unit]}`;
}

/** Three digits: 0.42, 3.14, 30.1, 812. */
export function digits(value) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  return value.toFixed(size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

export function count(value) {
  return isNumber(value) ? Math.round(value).toLocaleString("en") : NONE;
}

export function percent(share) {
  return isNumber(share) ? `${(share * 100).toFixed(share > 0.995 && share < 1 ? 1 : 0)}%` : NONE;
}

export function seconds(value) {
  if (!isNumber(value)) return NONE;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${Number.isInteger(value) ? value : digits(value)} s`;
  if (value < 3600) return twoUnits(Math.round(value), 60, "min", "s");
  if (value < 86400) return twoUnits(Math.round(value / 60), 60, "h", "min");
  return twoUnits(Math.round(value / 3600), 24, "d", "h");
}

function twoUnits(smalls, ratio, large, small) {
  const rest = smalls % ratio;
  return `${Math.floor(smalls / ratio)} ${large}${rest ? ` ${rest} ${small}` : ""}`;
}

/** "5 min ago" for a time stamp that `Date` can read. */
export function ago(stamp) {
  const past = (Date.now() - new Date(stamp).getTime()) / 1000;
  if (!isNumber(past)) return NONE;
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(stamp).toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
}
