// Lines over time, drawn as SVG in the page's colours, with a text that says the same.

import { NOTHING, clock } from './format.js';
import { html, memo, useCallback, useId, useMemo, useRef, useState } from './ui.js';

/** The drawing's own units; the browser stretches it to the room that there is. */
const WIDE = 1000;
const HIGH = 100;
const TICKS = 4;
/** The part of the width that has times under it: a label at the very end would stand beyond the drawing. */
const LABELLED = 0.96;
const X_STEPS_S = [10, 30, 60, 120, 300, 600, 900, 1800, 3600];

const isKnown = (value) => value !== null && value !== undefined;

/** The next of 1, 2, 5, 10, 20, ... that is not below a number. */
function roundUp(amount) {
  const power = 10 ** Math.floor(Math.log10(amount));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= amount * (1 - 1e-9));
}

/** The top of the scale and the distance of its lines; of counts, whole numbers. */
function scaleOf(series, isCount) {
  const most = series.reduce((best, { values }) => values.reduce((high, value) => Math.max(high, value ?? 0), best), 0);
  const step = Math.max(isCount ? 1 : 0, roundUp((most || 1) / TICKS));
  return { step, top: step * Math.max(1, Math.ceil(most / step - 1e-9)) };
}

/** Moments of the hour between two times, in seconds, at most eight. */
function moments(from, to) {
  const step = X_STEPS_S.find((it) => (to - from) / it <= 8) ?? X_STEPS_S.at(-1);
  const first = Math.ceil(from / step) * step;
  return Array.from({ length: Math.floor((to - first) / step) + 1 }, (_, index) => first + index * step);
}

/** The runs of known values, each a list of points: nothing is drawn where nothing was measured. */
function runs(values, x, y) {
  const found = [];
  let run = null;
  values.forEach((value, index) => {
    if (isKnown(value)) {
      if (!run) found.push((run = []));
      run.push([x(index), y(value)]);
    } else {
      run = null;
    }
  });
  return found;
}

const point = ([left, top]) => `${left.toFixed(1)} ${top.toFixed(2)}`;
const line = (run) => `M${run.map(point).join('L')}`;
const area = (run) => `${line(run)}V${HIGH}H${run[0][0].toFixed(1)}Z`;
/** A lone point: a line without length, whose round ends are a dot. */
const dot = ([only]) => `M${point(only)}h0`;
const isLone = (run) => run.length === 1;

const Plot = memo(({ times, series, format, isCount }) => {
  const { top, step } = scaleOf(series, isCount);
  const from = times[0] ?? 0;
  const span = Math.max(1, (times.at(-1) ?? 1) - from);
  const x = (index) => ((times[index] - from) / span) * WIDE;
  const y = (value) => HIGH - (value / top) * HIGH;
  const lines = series.map(({ values }) => runs(values, x, y));
  return html`
    ${Array.from({ length: Math.round(top / step) + 1 }, (_, index) => index * step).map(
      (tick) => html`<div class="tick tick-y num" style=${{ top: `${y(tick)}%` }}><span>${format(tick)}</span></div>`,
    )}
    ${times.length > 1 &&
    moments(from, from + span * LABELLED).map(
      (moment) => html`<div class="tick tick-x num" style=${{ left: `${((moment - from) / span) * 100}%` }}>${clock(moment * 1000).slice(0, span > 300 ? 5 : 8)}</div>`,
    )}
    <svg viewBox="0 0 ${WIDE} ${HIGH}" preserveAspectRatio="none">
      ${series.map(
        (it, index) => html`
          ${it.isFilled && html`<path class="area series-${index + 1}" d=${lines[index].map(area).join('')} />`}
          <path class="series-${index + 1}" d=${lines[index].map(line).join('')} />
          <path class="dots series-${index + 1}" d=${lines[index].filter(isLone).map(dot).join('')} />
        `,
      )}
    </svg>
  `;
});

/** The place of the time that is next to a share of the width. */
function placeAt(times, share) {
  const wanted = times[0] + share * (times.at(-1) - times[0]);
  const after = times.findIndex((time) => time >= wanted);
  if (after <= 0) return Math.max(0, after);
  return wanted - times[after - 1] < times[after] - wanted ? after - 1 : after;
}

/**
 * `times`: seconds since 1970, ascending; `series`: `[{label, values, isFilled?}]`, null where nothing is known;
 * `format(value)` gives a number with its unit; `isCount`: only whole numbers are on the scale. At most four series: each has a
 * colour and a dash of its own.
 * Both lists are replaced when they change, never edited.
 */
export function Chart({ title, times, series, format, isCount }) {
  const plot = useRef(null);
  const [pointed, pointAt] = useState(null);
  const id = useId();
  const moved = useCallback(
    (event) => {
      const { left, width } = plot.current.getBoundingClientRect();
      if (times.length > 1) pointAt(placeAt(times, Math.min(1, Math.max(0, (event.clientX - left) / width))));
    },
    [times],
  );
  const most = useMemo(() => series.map(({ values }) => values.filter(isKnown).reduce((high, value) => Math.max(high, value), -Infinity)), [series]);
  const said = (value) => (isKnown(value) && Number.isFinite(value) ? format(value) : NOTHING);
  const isPointed = pointed !== null && pointed < times.length;
  const shown = ({ values }) => (isPointed ? values[pointed] : values.findLast(isKnown));
  const left = isPointed ? ((times[pointed] - times[0]) / Math.max(1, times.at(-1) - times[0])) * 100 : 0;
  return html`
    <figure class="chart" aria-labelledby=${id}>
      <figcaption id=${id}>
        <span class="chart-title">${title}</span>
        <span class="legend">
          ${isPointed && html`<span class="num" aria-hidden="true">${clock(times[pointed] * 1000)}</span>`}
          ${series.map(
            (it, index) => html`<span class="legend-entry">
              <span class="legend-line series-${index + 1}" aria-hidden="true"></span>
              ${it.label} <b class="num">${said(shown(it))}</b>
              <span class="visually-hidden">; at most ${said(most[index])} in the time shown</span>
            </span>`,
          )}
        </span>
      </figcaption>
      <div class="chart-box" aria-hidden="true" onPointerMove=${moved} onPointerLeave=${() => pointAt(null)}>
        <div class="plot" ref=${plot}>
          <${Plot} times=${times} series=${series} format=${format} isCount=${isCount} />
          ${isPointed && html`<div class="cursor" style=${{ left: `${left}%` }}></div>`}
        </div>
      </div>
    </figure>
  `;
}
