// Numbers and words as a reader wants them.

export const MISSING = "\u2013";

/** 0.9861 -> "98.6%". Only 1 is "100%" and only 0 is "0%", whatever rounding says. */
export function percent(share, digits = 1) {
  if (share === null || share === undefined) return MISSING;
  if (share === 1) return "100%";
  if (share === 0) return "0%";
  let text = (100 * share).toFixed(digits);
  while (digits < 6 && ((share < 1 && Number(text) >= 100) || (share > 0 && Number(text) <= 0))) {
    digits += 1;
    text = (100 * share).toFixed(digits);
  }
  return `${text}%`;
}

export function count(value, singular, plural = `${singular}s`) {
  return `${whole(value)} ${value === 1 ? singular : plural}`;
}

export function whole(value) {
  return value === null || value === undefined ? MISSING : value.toLocaleString("en-GB");
}

export function decimal(value, digits = 3) {
  if (value === null || value === undefined) return MISSING;
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(1) : value.toFixed(digits);
}

export function range(interval, show = percent) {
  return interval ? `${show(interval[0])} to ${show(interval[1])}` : "";
}

export function quoted(name) {
  return `\u2018${name}\u2019`;
}

const UNITS = { px: "px", s: "seconds" };

/** "execution.loader_threads" -> "Loader threads"; the unit of "every_s" goes into brackets. */
export function words(name) {
  const parts = name.split(".").at(-1).split("_");
  const unit = parts.length > 1 ? UNITS[parts.at(-1)] : undefined;
  const text = (unit ? parts.slice(0, -1) : parts).join(" ").replace(/^ema\b/, "EMA");
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${unit ? ` (${unit})` : ""}`;
}
