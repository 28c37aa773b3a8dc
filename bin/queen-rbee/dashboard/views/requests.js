// What was asked of the fleet in the last hour: how often, how fast, and what went wrong.

import { call, secretsTold } from '../lib/api.js';
import { Chart } from '../lib/chart.js';
import { fleet, useFleet } from '../lib/fleet.js';
import { NOTHING, count, duration, number, quantity } from '../lib/format.js';
import { href } from '../lib/route.js';
import { useStore } from '../lib/store.js';
import { Empty, Failure, Page, Section, Select, Stat, Stats, Table, html, useEffect, useMemo, useState } from '../lib/ui.js';

const EVERY_MS = 5_000;
const HOUR_S = 3_600;
/** Seconds that are shown. */
const SPANS = [
  { value: '300', label: 'the last 5 minutes' },
  { value: '900', label: 'the last 15 minutes' },
  { value: '3600', label: 'the last hour' },
];
/** Points of a line, about. */
const POINTS = 60;
const COUNTED = ['requests', 'failed', 'refused', 'wrong', 'clients_gone', 'retries', 'migrations', 'output_tokens'];
const SAMPLED = ['inflight', 'waiting'];
const TIMED = ['ttft_ms', 'tokens_per_s'];
/** A bucket in which nothing happened. */
const NONE = Object.fromEntries([...[...COUNTED, ...SAMPLED].map((name) => [name, 0]), ...TIMED.map((name) => [name, null])]);

/** What was known and what is told now, as one row of buckets without a gap; the open bucket is told again. */
function merged(before, told) {
  const points = new Map((before?.points ?? []).filter((point) => point.at_s > told.now_s - HOUR_S).map((point) => [point.at_s, point]));
  told.points.forEach((point) => points.set(point.at_s, point));
  const times = [...points.keys()].sort((left, right) => left - right);
  const whole = [];
  for (let at = times[0] ?? Infinity; at <= times.at(-1); at += told.bucket_s) whole.push(points.get(at) ?? { ...NONE, at_s: at });
  return { ...told, points: whole };
}

/** The traffic of the last hour, asked for again every few seconds: only what is new, but all of it from another queen. */
function useTraffic() {
  const [known, know] = useState({ traffic: null, error: null });
  const [round, setRound] = useState(0);
  const secrets = useStore(secretsTold);
  useEffect(() => {
    const abort = new AbortController();
    let [traffic, queen, timer] = [null, null, null];
    const ask = async () => {
      try {
        const asked = fleet().queen?.id ?? null;
        const last = asked === queen ? traffic?.points.findLast((point) => !point.open) : null;
        const told = await call(`/v1/traffic${last ? `?after=${last.at_s}` : ''}`, { signal: abort.signal });
        traffic = merged(last && traffic, told);
        queen = asked;
        know({ traffic, error: null });
      } catch (error) {
        if (abort.signal.aborted) return;
        know({ traffic, error });
        if (error.status === 401) return;
      }
      timer = setTimeout(ask, EVERY_MS);
    };
    ask();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [round, secrets]);
  return { ...known, reload: () => setRound((before) => before + 1) };
}

/**
 * Fewer points, each of several buckets: 720 of five seconds would be a thicket. Counts are added up, what is sampled is averaged; of the
 * percentiles the p50 is averaged by requests and the p99 is the highest, as those of several buckets cannot be joined.
 */
function coarser(points, bucketS) {
  const step = Math.max(1, Math.round(points.length / POINTS)) * bucketS;
  const groups = new Map();
  for (const point of points) {
    const at = point.at_s - (point.at_s % step);
    groups.set(at, [...(groups.get(at) ?? []), point]);
  }
  return [...groups].map(([at, group]) => ({
    at_s: at,
    seconds: group.length * bucketS,
    ...Object.fromEntries(COUNTED.map((name) => [name, total(group, name)])),
    ...Object.fromEntries(SAMPLED.map((name) => [name, total(group, name) / group.length])),
    ...Object.fromEntries(TIMED.map((name) => [name, percentiles(group, name)])),
  }));
}

function percentiles(group, name) {
  const known = group.filter((point) => point[name]);
  if (known.length === 0) return null;
  const weight = known.reduce((sum, point) => sum + Math.max(1, point.requests), 0);
  return {
    p50: known.reduce((sum, point) => sum + point[name].p50 * Math.max(1, point.requests), 0) / weight,
    p99: Math.max(...known.map((point) => point[name].p99)),
  };
}

const total = (points, name) => points.reduce((sum, point) => sum + point[name], 0);
/** Requests that got what they asked for. */
const answered = (point) => point.requests - point.failed - point.refused - point.wrong - point.clients_gone;
const allAnswered = (points) => points.reduce((sum, point) => sum + answered(point), 0);
const perSecond = (value) => quantity(value, '/s', value > 0 ? Math.max(0, 1 - Math.floor(Math.log10(value))) : 0);
const ms = (value) => duration(value === null ? undefined : value);
const speed = (value) => quantity(value, 'tok/s', value > 0 && value < 10 ? 1 : 0);
const whole = (value) => (Number.isInteger(value) ? number(value) : number(value, 1));

function Figures({ points, bucketS }) {
  const { inflight, waiting } = useFleet();
  const minute = points.slice(-Math.ceil(60 / bucketS) - 1).filter((point) => !point.open);
  const seconds = Math.max(1, minute.length) * bucketS;
  const [ttft, pace] = [percentiles(minute, 'ttft_ms'), percentiles(minute, 'tokens_per_s')];
  return html`
    <div class="figures"><${Stats}>
      <${Stat} label="Answered" value=${perSecond(allAnswered(minute) / seconds)} detail=${`${number(allAnswered(points))} in an hour`} />
      <${Stat} label="First token, p50" value=${ms(ttft?.p50 ?? null)} detail=${`p99 ${ms(ttft?.p99 ?? null)}`} />
      <${Stat} label="Answer speed, p50" value=${speed(pace?.p50)} detail=${`p99 ${speed(pace?.p99)}`} />
      <${Stat} label="All tokens" value=${speed(total(minute, 'output_tokens') / seconds)} detail=${`${number(total(points, 'output_tokens'))} in an hour`} />
      <${Stat} label="Waiting" value=${count(waiting, 'request')} detail=${`${number(inflight)} in flight`} />
      <${Stat} label="Failed" value=${count(total(points, 'failed'), 'request')} tone=${total(points, 'failed') > 0 ? 'bad' : undefined} detail=${`${number(total(points, 'refused'))} no room, ${number(total(points, 'wrong'))} wrong`} />
      <${Stat} label="Tried elsewhere" value=${count(total(points, 'retries'), 'time')} detail=${`${number(total(points, 'migrations'))} in mid-answer`} />
      <${Stat} label="Clients that left" value=${number(total(points, 'clients_gone'))} detail="before the end" />
    <//></div>
  `;
}

/** The charts: each names a figure, what of a point it shows, and how that is written. */
const CHARTS = [
  {
    title: 'Requests per second',
    format: perSecond,
    lines: [
      ['answered', (point) => answered(point) / point.seconds],
      ['failed', (point) => point.failed / point.seconds],
      ['no room', (point) => point.refused / point.seconds],
      ['wrong', (point) => point.wrong / point.seconds],
    ],
  },
  { title: 'Time to the first token', format: ms, lines: [['p50', (point) => point.ttft_ms?.p50 ?? null], ['p99', (point) => point.ttft_ms?.p99 ?? null]] },
  { title: 'Tokens per second of an answer', format: speed, lines: [['p50', (point) => point.tokens_per_s?.p50 ?? null], ['p99', (point) => point.tokens_per_s?.p99 ?? null]] },
  { title: 'Tokens per second of all answers', format: speed, lines: [['all models', (point) => point.output_tokens / point.seconds]] },
  { title: 'In flight and waiting', format: whole, isCount: true, lines: [['in flight', (point) => point.inflight], ['waiting', (point) => point.waiting]] },
  { title: 'Retries and migrations', format: whole, isCount: true, lines: [['retries', (point) => point.retries], ['migrations', (point) => point.migrations]] },
];

function Charts({ points, bucketS }) {
  const drawn = useMemo(() => {
    const closed = coarser(points.filter((point) => !point.open), bucketS);
    const times = closed.map((point) => point.at_s);
    return CHARTS.map(({ lines, ...chart }) => {
      const series = lines.map(([label, value], index) => ({
        label,
        values: closed.map((point) => value(point)),
        isFilled: index === 0 && lines.length < 3,
      }));
      return { ...chart, times, series };
    });
  }, [points, bucketS]);
  return html`<div class="charts">
    ${drawn.map((chart) => html`<${Chart} key=${chart.title} ...${chart} />`)}
  </div>`;
}

const both = (told, write) => (told ? `${write(told.p50)} · ${write(told.p99)}` : NOTHING);
const MODEL_COLUMNS = [
  { id: 'model', label: 'Model', width: '14rem', value: (row) => row.model },
  { id: 'requests', label: 'Requests', width: '7rem', align: 'end', value: (row) => row.requests, cell: (row) => number(row.requests) },
  { id: 'failed', label: 'Failed', width: '6rem', align: 'end', value: (row) => row.failed, cell: (row) => number(row.failed) },
  { id: 'tokens', label: 'Output tokens', width: '8.5rem', align: 'end', value: (row) => row.output_tokens, cell: (row) => number(row.output_tokens) },
  { id: 'ttft', label: 'First token, p50 · p99', width: '13rem', align: 'end', value: (row) => row.ttft_ms?.p50 ?? 0, cell: (row) => both(row.ttft_ms, ms) },
  { id: 'speed', label: 'Speed, p50 · p99', width: '13rem', align: 'end', value: (row) => row.tokens_per_s?.p50 ?? 0, cell: (row) => both(row.tokens_per_s, speed) },
];

export default function Requests() {
  const { traffic, error, reload } = useTraffic();
  const [span, setSpan] = useState('3600');
  const shown = useMemo(() => {
    const since = (traffic?.now_s ?? 0) - Number(span);
    return (traffic?.points ?? []).filter((point) => point.at_s >= since);
  }, [traffic, span]);
  const { inflight } = useFleet();
  const isQuiet = traffic && inflight === 0 && traffic.points.every((point) => point.requests + point.inflight === 0);
  const choose = html`<${Select} aria-label="Time shown" options=${SPANS} value=${span} onChange=${setSpan} />`;
  const body = traffic && !isQuiet && html`
    <${Figures} points=${traffic.points} bucketS=${traffic.bucket_s} />
    <${Charts} points=${shown} bucketS=${traffic.bucket_s} />
    <${Section} title="By model, in the last hour">
      <${Table} caption="Requests by model in the last hour" columns=${MODEL_COLUMNS} rows=${traffic.models} rowKey=${(row) => row.model} sortBy="requests" descending />
    <//>`;
  return html`
    <${Page} title="Requests" lead="How often the fleet is asked, how fast it answers, and what went wrong." actions=${choose}>
      ${error && html`<${Failure} error=${error} retry=${reload} />`}
      ${isQuiet && html`<${Empty} icon="requests" title="No request in the last hour" command=${'rbee run smollm2-135m-instruct "Hello"'}>
        Point a client at this address, or <a href=${href('chat')}>ask something here</a>.
      <//>`}
      ${body}
    <//>
  `;
}
