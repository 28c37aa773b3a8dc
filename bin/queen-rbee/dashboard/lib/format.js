// Numbers, sizes and times as people read them. Every text has its unit; what is not known is a dash.

export const NOTHING = '–';

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** `1,234`; with digits behind the point if asked for. */
export function number(value, digits = 0) {
  return known(value) ? value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits }) : NOTHING;
}

/** A number with its unit: `12.5 tok/s`. Large numbers go without digits behind the point. */
export function quantity(value, unit, digits = 1) {
  return known(value) ? `${number(value, Math.abs(value) >= 100 ? 0 : digits)} ${unit}` : NOTHING;
}

/** `1 request`, `3 requests`. */
export const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

/** Mebibytes: `512 MB`, `23.5 GB`. */
export function megabytes(value) {
  if (!known(value)) return NOTHING;
  return Math.abs(value) < 1024 ? `${number(value)} MB` : `${number(value / 1024, value < 102400 ? 1 : 0)} GB`;
}

/** Bytes of memory, as `megabytes` shows them. */
export const memory = (value) => megabytes(known(value) ? value / 1_048_576 : null);

/** Bytes of files: `98.4 MB`, `5.0 GB`, with the prefixes that file sizes have. */
export function bytes(value) {
  if (!known(value)) return NOTHING;
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  let rest = value;
  while (rest >= 1000 && unit < units.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  return `${number(rest, unit > 1 && rest < 100 ? 1 : 0)} ${units[unit]}`;
}

/** A share of 1: `45 %`. */
export const percent = (share, digits = 0) => (known(share) ? `${number(share * 100, digits)} %` : NOTHING);

/** How long: `40 ms`, `2.5 s`, `3 min`, `5 h`, `12 d`. */
export function duration(ms) {
  if (!known(ms)) return NOTHING;
  if (ms < 995) return `${number(ms)} ms`;
  if (ms < 9_950) return `${number(ms / 1000, 1)} s`;
  if (ms < 99_500) return `${number(ms / 1000)} s`;
  if (ms < 5_940_000) return `${number(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${number(ms / 3_600_000)} h`;
  return `${number(ms / 86_400_000)} d`;
}

/** How long ago: `now`, `12 s ago`, `3 min ago`. */
export function ago(ms) {
  if (!known(ms)) return NOTHING;
  return ms < 1500 ? 'now' : `${duration(Math.floor(ms / 1000) * 1000).replace(/\.0 s$/, ' s')} ago`;
}

/** Time of day of an RFC 3339 text or a Date, in the reader's zone: `14:03:22`. */
export function clock(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? NOTHING : date.toLocaleTimeString('en-GB');
}

/** A snake_case word for people. */
export const words = (text) => String(text ?? '').replaceAll('_', ' ');
