// Where one worker more of a model would go now, and for each device why or why not.

import { bytes, count, duration } from '../lib/format.js';
import { go, href } from '../lib/route.js';
import {
  Badge, Empty, Failure, Field, Notice, Page, Progress, Section, Select, Stat, Stats, Table, html, useRef, useResource,
} from '../lib/ui.js';
import { MODEL_STATES } from './model_state.js';
import { Verdicts, target } from './verdicts.js';

const EVERY_MS = 3_000;

const WORKER_COLUMNS = [
  { id: 'worker', label: 'Worker', width: '12rem', value: (row) => row.worker },
  { id: 'hive', label: 'Host', width: '12rem', value: (row) => row.hive ?? 'none: started by hand' },
  { id: 'device', label: 'Device', width: '6rem', value: (row) => row.device },
  {
    id: 'ready',
    label: 'State',
    width: '9rem',
    value: (row) => (row.ready ? 'ready' : 'not ready'),
    cell: (row) => html`<${Badge} tone=${row.ready ? 'good' : 'warn'}>${row.ready ? 'ready' : 'not ready'}<//>`,
  },
  { id: 'reason', label: 'Why', width: '20rem', value: (row) => row.reason ?? '' },
];

/** What is under way, what failed lately, and what the figures are worth. */
function Remarks({ placement }) {
  const { loading, failures, estimate } = placement;
  return html`
    ${loading &&
    html`<${Progress}
      label=${[loading.words, [loading.hive, loading.device].filter(Boolean).join(' ')].filter(Boolean).join(', on ')}
      value=${loading.progress}
      detail=${[`for ${duration(loading.for_ms)}`, loading.eta_ms && `some ${duration(loading.eta_ms)} to go`].filter(Boolean).join(', ')}
    />`}
    ${failures.map(
      (failure) => html`<${Notice} key=${failure.hive} tone="warn">
        Failed on ${failure.hive}: ${failure.reason}. It is tried there again in ${duration(failure.retry_in_ms)}.
      <//>`,
    )}
    ${estimate && html`<${Notice}>What it needs is an estimate: ${estimate}.<//>`}
  `;
}

function Answer({ placement }) {
  const { alias, model, decision, workers } = placement;
  const { choice } = decision;
  const place = choice
    ? `One worker more would go to ${target(choice)}.`
    : decision.verdicts.length > 0 ? 'No device has room for one worker more.' : null;
  return html`
    <${Stats}>
      <${Stat} label="State" value=${MODEL_STATES[placement.state]?.word ?? placement.state} detail=${alias && `${alias} stands for ${model}`} />
      <${Stat} label="Size of its files" value=${bytes(placement.size_bytes)} />
      <${Stat} label="Workers" value=${count(workers.length, 'worker')} detail=${`${workers.filter((worker) => worker.ready).length} ready`} />
      <${Stat} label="Waiting" value=${count(placement.waiting, 'request')} />
    <//>
    <${Remarks} placement=${placement} />
    <${Section} title="Where the next one would go">
      ${place && html`<${Notice} tone=${choice ? 'good' : 'warn'}>${place}<//>`}
      <${Verdicts} problem=${placement.problem} decision=${decision} caption=${`What each device says to ${model}`} />
    <//>
    ${workers.length > 0 &&
    html`<${Section} title="Who serves it now">
      <${Table} caption=${`Workers of ${model}`} columns=${WORKER_COLUMNS} rows=${workers} rowKey=${(row) => row.worker} />
    <//>`}
  `;
}

export default function Placement({ params }) {
  const asked = params.get('model');
  const models = useResource('/v1/models', { everyMs: 10_000 });
  const rank = ({ state }) => MODEL_STATES[state]?.rank ?? 9;
  const listed = [...(models.data?.data ?? [])].sort((left, right) => rank(left) - rank(right) || left.id.localeCompare(right.id));
  const names = listed.map((model) => model.id);
  // The order changes with the models' states; what is being read does not.
  const first = useRef(null);
  first.current ??= names[0] ?? null;
  const model = asked ?? first.current;
  const placement = useResource(model && `/v1/placement?model=${encodeURIComponent(model)}`, { everyMs: EVERY_MS });
  const options = asked && !names.includes(asked) ? [asked, ...names] : names;
  const choose = html`<${Field} id="placement-model" label="Model">
    <${Select} id="placement-model" class="model-choice" options=${options} value=${model} onChange=${(name) => go('placement', { model: name }, { replace: true })} />
  <//>`;
  return html`
    <${Page} title="Placement" lead="Where one worker more of a model would go now: every device, with what speaks for it and against it." actions=${model && choose}>
      ${models.error && html`<${Failure} error=${models.error} retry=${models.reload} />`}
      ${models.data && names.length === 0 && html`<${Empty} icon="placement" title="No model is known yet" command=${`rbee join ${location.origin}`}>
        A hive brings the catalogue of models, and the devices that could take them.
      <//>`}
      ${placement.error && html`<${Failure} error=${placement.error} retry=${placement.reload} />`}
      ${placement.data
        ? html`<${Answer} placement=${placement.data} />
            <p class="muted">What was decided before, and why, stands under <a href=${href('decisions')}>Decisions</a>.</p>`
        : null}
    <//>
  `;
}
