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

/** "execution.loader_threads" -> "Loader threads". */
export function words(name) {
  const last = name.split(".").at(-1).replaceAll("_", " ");
  return last.charAt(0).toUpperCase() + last.slice(1);
}
