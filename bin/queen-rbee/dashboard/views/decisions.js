// What was placed where lately, why it had to be, and what came of it.

import { count, duration, memory } from '../lib/format.js';
import { href } from '../lib/route.js';
import { Ago, Badge, Empty, Failure, Notice, Page, Section, Table, html, useResource } from '../lib/ui.js';
import { Verdicts, place, target } from './verdicts.js';

const EVERY_MS = 3_000;
const SHOWN = 200;

const TRIGGERS = {
  demand: ({ waiting }) => `${count(waiting, 'request')} waited and nobody served it`,
  line: ({ waiting, running }) => `${count(waiting, 'request')} waited for ${count(running, 'worker')}`,
  serve: ({ wanted, running }) => `${running} of ${count(wanted, 'worker')} ran that must`,
  operator: () => 'an operator asked for it',
};
const trigger = (cause) => TRIGGERS[cause.why]?.(cause) ?? cause.why;

const OUTCOMES = {
  nowhere: () => ({ tone: 'bad', word: 'nowhere', detail: 'no device takes it' }),
  under_way: () => ({ tone: 'info', icon: 'busy', word: 'under way' }),
  ready: ({ worker, after_ms: ms }) => ({ tone: 'good', word: 'ready', detail: `${worker} after ${duration(ms)}` }),
  failed: ({ reason }) => ({ tone: 'bad', word: 'failed', detail: reason }),
  given_up: () => ({ tone: 'muted', word: 'given up', detail: 'nobody wanted it any more' }),
};
const outcome = (told) => OUTCOMES[told.state]?.(told) ?? { tone: 'muted', word: told.state };

function Outcome({ told }) {
  const { tone, icon = tone, word, detail } = outcome(told);
  return html`<span class="two-lines"><span><${Badge} tone=${tone} icon=${icon}>${word}<//></span>${detail && html`<span class="muted small">${detail}</span>`}</span>`;
}

const COLUMNS = [
  { id: 'id', label: 'No.', width: '3.5rem', align: 'end', value: (row) => row.id },
  { id: 'when', label: 'When', width: '6.5rem', value: (row) => row.timestamp, cell: (row) => html`<${Ago} since=${row.timestamp} />` },
  { id: 'model', label: 'Model', width: '11rem', value: (row) => row.problem.model },
  { id: 'why', label: 'Wanted because', width: '12.5rem', value: (row) => trigger(row.trigger) },
  { id: 'to', label: 'Goes to', width: '8.5rem', value: (row) => place(row.decision.choice) },
  { id: 'outcome', label: 'What came of it', width: '13.5rem', value: (row) => row.outcome.state, cell: (row) => html`<${Outcome} told=${row.outcome} />` },
  {
    id: 'more',
    label: '',
    width: '6.5rem',
    cell: (row) => html`<a href=${href('decisions', { id: row.id })}>Why there<span class="visually-hidden">, decision ${row.id}</span></a>`,
  },
];

/** All that was known and found for one of them. */
function Detail({ record }) {
  const { choice } = record.decision;
  const evicted = choice?.evict ?? [];
  return html`
    <${Section}
      title=${`Decision ${record.id}: ${record.problem.model}`}
      actions=${html`<a href=${href('decisions')}>All decisions</a>`}
    >
      <p>
        Wanted because ${trigger(record.trigger)}. ${choice ? `It goes to ${target(choice)}.` : 'No device takes it.'}
        ${evicted.length > 0 && ` Stopped for it: ${evicted.join(', ')}.`}
        ${' '}With the smallest cache it takes ${memory(record.decision.verdicts[0]?.needs_bytes)} there.
      </p>
      <${Verdicts} problem=${record.problem} decision=${record.decision} caption=${`What each device said to decision ${record.id}`} />
      <p class="muted">To decide it once more from this record: <code>rbee decisions --replay ${record.id}</code></p>
    <//>
  `;
}

export default function Decisions({ params }) {
  const { data, error, reload } = useResource(`/v1/decisions?limit=${SHOWN}`, { everyMs: EVERY_MS });
  const wanted = params.get('id');
  const decisions = data?.decisions ?? [];
  const record = decisions.find((it) => String(it.id) === wanted);
  const empty = html`<${Empty} icon="decisions" title="No decision yet" command=${'rbee run smollm2-135m-instruct "Hello"'}>
    A request for a model that nobody serves, or <a href=${href('models')}>a model that is loaded</a>, makes the first one.
  <//>`;
  return html`
    <${Page} title="Decisions" lead="What was placed where since the queen started, and why.">
      ${error && html`<${Failure} error=${error} retry=${reload} />`}
      ${data && wanted && !record && html`<${Notice} tone="warn">The queen keeps no decision ${wanted} any more.<//>`}
      ${record && html`<${Detail} record=${record} />`}
      ${data && html`<${Table} caption="Decisions, the newest first" columns=${COLUMNS} rows=${decisions} rowKey=${(row) => row.id} sortBy="id" descending empty=${empty} />`}
    <//>
  `;
}
