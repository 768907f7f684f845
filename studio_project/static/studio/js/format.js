/** Numbers, times and sizes in the page's language. */

const language = document.documentElement.lang || "en";
const plain = new Intl.NumberFormat(language);
const share = new Intl.NumberFormat(language, { style: "percent" });

export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  if (!digits) return plain.format(value);
  return new Intl.NumberFormat(language, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  }).format(value);
}

/** A small number such as a loss or a learning rate: four significant digits, never 0.00000. */
export function measure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return new Intl.NumberFormat(language, { maximumSignificantDigits: 4 }).format(value);
}

/** Rounded down, so that 100 % means finished. */
export function percent(fraction) {
  return share.format(Math.floor((fraction || 0) * 100) / 100);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.round(seconds));
  const two = (value) => String(value).padStart(2, "0");
  if (whole < 60) return interpolate(gettext("%s s"), [whole]);
  if (whole < 3600) return interpolate(gettext("%s min %s s"), [Math.floor(whole / 60), two(whole % 60)]);
  return interpolate(gettext("%s h %s min"), [Math.floor(whole / 3600), two(Math.floor((whole % 3600) / 60))]);
}

export function bytes(count) {
  const units = [gettext("B"), gettext("kB"), gettext("MB"), gettext("GB")];
  let unit = 0;
  let value = count;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value, unit && value < 10 ? 1 : 0)}\u202f${units[unit]}`;
}

const spans = [[86400, "day"], [3600, "hour"], [60, "minute"]];
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const exact = new Intl.DateTimeFormat(language, { dateStyle: "long", timeStyle: "short" });
const day = new Intl.DateTimeFormat(language, { dateStyle: "long" });

/** Relative under a day, else the date. */
export function when(moment) {
  const date = new Date(moment);
  const age = (Date.now() - date.getTime()) / 1000;
  if (age >= 86400) return day.format(date);
  const [size, unit] = spans.find(([span]) => age >= span) ?? [1, null];
  return unit ? relative.format(-Math.floor(age / size), unit) : gettext("just now");
}

export function exactTime(moment) {
  return exact.format(new Date(moment));
}
