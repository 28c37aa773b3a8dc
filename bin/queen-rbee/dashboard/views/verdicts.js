// What the queen found about each device for a model, in words: shared by the placement and the decisions.

import { count, memory, number } from '../lib/format.js';
import { Badge, Bar, Empty, Table, html } from '../lib/ui.js';

const VERDICTS = {
  chosen: { tone: 'good', word: 'chosen' },
  fits: { tone: 'info', word: 'fits' },
  fits_after_eviction: { tone: 'info', word: 'after eviction' },
  too_small: { tone: 'warn', word: 'too small' },
  closed: { tone: 'warn', word: 'closed' },
};

const CRITERIA = {
  no_eviction: 'the chosen one needs no eviction',
  gpu: 'the chosen one is a GPU',
  fewer_evictions: 'the chosen one needs fewer evictions',
  spare_evictions: 'on the chosen one go workers whose models run elsewhere, too',
  other_host: 'the chosen host has fewer workers of the model',
  has_file: 'the chosen host has the file',
  larger_cache: 'the chosen one has room for a larger cache',
  longer_idle: 'on the chosen one go workers that were idle for longer',
  free_share: 'a larger share of the chosen one is free',
  tighter: 'less is free on the chosen one',
  order: 'the chosen one comes first',
};

/** Who holds the memory that is missing. */
function holders({ evictable_bytes: evictable, busy, pinned }) {
  const parts = [
    evictable > 0 && `idle workers hold only ${memory(evictable)}`,
    busy > 0 && `${count(busy, 'worker')} busy`,
    pinned > 0 && `${count(pinned, 'worker')} pinned`,
  ];
  return parts.filter(Boolean).join(', ') || 'the device itself has too little memory free';
}

/** Why, or why not, on this device. */
function reason(decision, verdict) {
  const clauses = {
    chosen: () => {
      const evicted = decision.choice?.evict ?? [];
      return evicted.length > 0 ? `in the place of ${evicted.join(', ')}` : 'the best of those that can take it';
    },
    fits: () => 'it could run here',
    fits_after_eviction: () => `in the place of ${verdict.evict.join(', ')}, which frees ${memory(verdict.frees_bytes)}`,
    too_small: () => holders(verdict),
    closed: () => verdict.why,
  };
  const lost = verdict.lost_by && `but ${CRITERIA[verdict.lost_by] ?? verdict.lost_by}`;
  return [clauses[verdict.outcome]?.(), lost].filter(Boolean).join(', ');
}

/** Where a decision leads, for people: `gpu-box cuda:0`. */
export const place = (choice) => (choice ? `${choice.host} ${choice.device}` : 'nowhere');

/** The same with what is granted there. */
export function target(choice) {
  const evicted = choice.evict.length > 0 ? ` in the place of ${choice.evict.join(', ')}` : '';
  return `${place(choice)}${evicted}, with a cache of ${number(choice.kv_tokens)} tokens (${memory(choice.bytes)} in all)`;
}

const Verdict = ({ outcome }) => {
  const { tone, word } = VERDICTS[outcome] ?? { tone: 'muted', word: outcome };
  return html`<${Badge} tone=${tone}>${word}<//>`;
};

function Room({ row }) {
  const used = Math.max(0, row.total_bytes - row.free_bytes);
  const fits = row.needs_bytes <= row.free_bytes;
  const label = `needs ${memory(row.needs_bytes)}, ${memory(row.free_bytes)} of ${memory(row.total_bytes)} are free`;
  const parts = [
    { value: used, tone: 'others' },
    { value: fits ? row.needs_bytes : row.free_bytes, tone: fits ? 'ours' : 'warn' },
  ];
  return html`<div class="room">
    ${memory(row.free_bytes)} of ${memory(row.total_bytes)}
    <${Bar} parts=${parts} total=${row.total_bytes} label=${label} />
  </div>`;
}

const COLUMNS = [
  { id: 'host', label: 'Host', width: '9rem', value: (row) => row.host },
  { id: 'device', label: 'Device', width: '5.5rem', value: (row) => row.device },
  { id: 'verdict', label: 'Verdict', width: '9.5rem', value: (row) => row.outcome, cell: (row) => html`<${Verdict} outcome=${row.outcome} />` },
  { id: 'needs', label: 'Needs', width: '5.5rem', align: 'end', value: (row) => row.needs_bytes, cell: (row) => memory(row.needs_bytes) },
  { id: 'free', label: 'Free', width: '10rem', align: 'end', value: (row) => row.free_bytes, cell: (row) => html`<${Room} row=${row} />` },
  { id: 'file', label: 'File', width: '5rem', value: (row) => (row.hasFile ? 'there' : 'not yet') },
  { id: 'why', label: 'Why', width: '17rem', value: (row) => row.reason },
];

/** A row for each device of a decision. */
export function Verdicts({ problem, decision, caption }) {
  const withFile = new Set(problem.hosts.filter((host) => host.has_file).map((host) => host.id));
  const rows = decision.verdicts.map((verdict) => ({
    ...verdict,
    hasFile: withFile.has(verdict.host),
    reason: reason(decision, verdict),
  }));
  const empty = html`<${Empty} icon="placement" title="The fleet has no host" command=${`rbee join ${location.origin}`}>
    Start a hive on a machine, and its devices stand here.
  <//>`;
  return html`<${Table} caption=${caption} columns=${COLUMNS} rows=${rows} rowKey=${(row) => `${row.host} ${row.device}`} empty=${empty} />`;
}
