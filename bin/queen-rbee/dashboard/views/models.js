// The models: which run, lie on a disk, or could be fetched; and what an operator does with them.

import { call } from '../lib/api.js';
import { onFleetEvent, useFleet } from '../lib/fleet.js';
import { NOTHING, bytes, count, duration, number, quantity } from '../lib/format.js';
import { cancelJob, jobDone, startJob } from '../lib/jobs.js';
import { href } from '../lib/route.js';
import {
  Ago, Badge, Dialog, Empty, Failure, Field, Page, Progress, Readiness, Section, Select, Table, attempt, confirm, html, toast,
  useEffect, useMemo, useResource, useState,
} from '../lib/ui.js';
import { MODEL_STATES, ModelState } from './model_state.js';

const EVERY_MS = 5_000;
/** While a job runs. */
const OFTEN_MS = 1_000;
const JOBS_SHOWN = 5;

/** What the jobs that change something do, for people. */
const WORDS = {
  worker_spawn: ({ model }) => `Load ${model}`,
  model_pull: ({ model }) => `Fetch ${model}`,
  model_delete: ({ model }) => `Delete ${model}`,
  worker_stop: ({ worker_id: worker }) => `Stop ${worker}`,
  worker_drain: ({ worker_id: worker }) => `Drain ${worker}`,
};
const JOB_STATES = {
  running: { tone: 'info', icon: 'busy', word: 'running' },
  succeeded: { tone: 'good', word: 'done' },
  failed: { tone: 'bad', word: 'failed' },
  cancelled: { tone: 'muted', word: 'cancelled' },
};

/** Everything that the page shows, asked for again now and then, and at once when something happened. */
function useModels() {
  const [isAtWork, setAtWork] = useState(false);
  const models = useResource('/v1/models', { everyMs: EVERY_MS });
  const stated = useResource('/v1/serve', { everyMs: EVERY_MS });
  const jobs = useResource('/v1/jobs', { everyMs: isAtWork ? OFTEN_MS : EVERY_MS });
  const running = jobs.data?.jobs.some((job) => job.state === 'running') ?? false;
  useEffect(() => setAtWork(running), [running]);
  const reload = () => [models, stated, jobs].forEach((resource) => resource.reload());
  useEffect(() => {
    let timer = null;
    const stop = onFleetEvent(() => {
      clearTimeout(timer);
      timer = setTimeout(reload, 300);
    });
    return () => {
      clearTimeout(timer);
      stop();
    };
  }, []);
  return { models, stated, jobs, reload };
}

/** The models with what the fleet knows of them: who serves each, who has its file and how a hive calls it, what is stated. */
function joined(models, stated, { hives, workers }) {
  const holders = (id) => [...hives.values()].filter((hive) => hive.capabilities?.models.some((model) => model.id === id));
  return models.map((model) => {
    const id = model.alias_of ?? model.id;
    const serving = [...workers.values()].filter((worker) => worker.model_id === id);
    const files = holders(id);
    const { facts, reference = id } = files[0]?.capabilities.models.find((it) => it.id === id) ?? {};
    const canChat = serving[0] ? serving[0].endpoints.includes('chat_completions') : facts?.chat !== false;
    return { ...model, serving, canChat, facts, reference, holders: files.map((hive) => hive.id), kept: stated.find((it) => it.model === id) };
  });
}

/** Starts a job, says so, and says how it ended, wherever the reader is by then. */
async function begin(operation, words, reload) {
  const id = await attempt(() => startJob(operation), words);
  reload();
  if (!id) return;
  await jobDone(id).catch((error) => toast(`${WORDS[operation.operation](operation)}: ${error.message}`, 'bad'));
  reload();
}

function Job({ job, reload }) {
  const { operation, state, last_event: last, hive_id: hive } = job;
  const { tone, icon = tone, word } = JOB_STATES[state];
  const progress = last?.progress;
  const unit = progress?.unit === 'bytes' ? bytes : (value) => `${number(value)} ${progress?.unit === 'percent' ? '%' : progress?.unit}`;
  const detail = progress?.total && [
    progress.unit === 'percent' ? unit(progress.done) : `${unit(progress.done)} of ${unit(progress.total)}`,
    progress.per_second && `${unit(progress.per_second)}/s`,
    progress.eta_s && `${duration(progress.eta_s * 1000)} to go`,
  ].filter(Boolean).join(', ');
  const said = last?.error?.message ?? (state === 'running' ? last?.message : null);
  const name = WORDS[operation.operation](operation);
  return html`
    <li class="job">
      <div class="row">
        <${Badge} tone=${tone} icon=${icon}>${word}<//>
        <strong class="break">${name}</strong>
        ${hive && html`<span class="muted">on ${hive}</span>`}
        <span class="muted"><${Ago} since=${job.created_at} /></span>
        ${state === 'running' &&
        html`<button type="button" aria-label=${`Cancel: ${name}`} onClick=${() => attempt(() => cancelJob(job.job_id), 'Cancelled').then(reload)}>Cancel</button>`}
      </div>
      ${state === 'running' &&
      html`<${Progress} label=${progress?.phase?.replaceAll('_', ' ') ?? 'starting'} value=${progress?.total ? progress.done : null} max=${progress?.total || 1} detail=${detail} />`}
      ${said && html`<p class="small break ${last.error ? '' : 'muted'}">${said}</p>`}
    </li>
  `;
}

function Jobs({ jobs, reload }) {
  const shown = jobs.filter((job) => WORDS[job.operation.operation]).slice(0, JOBS_SHOWN);
  if (shown.length === 0) return null;
  return html`<${Section} title="Jobs"><ul class="jobs">${shown.map((job) => html`<${Job} key=${job.job_id} job=${job} reload=${reload} />`)}</ul><//>`;
}

/** Where to: any host, or one of these. */
const hosts = (hives) => [{ value: '', label: 'where it fits best' }, ...[...hives.keys()].map((id) => ({ value: id, label: id }))];

function Fetch({ hives, reload }) {
  const send = (event) => {
    event.preventDefault();
    const { model, hive } = event.target.elements;
    const name = model.value.trim();
    begin({ operation: 'model_pull', model: name, hive_id: hive.value || undefined }, `Fetching ${name}`, reload);
    model.value = '';
  };
  return html`
    <${Section} title="Fetch another model">
      <form class="fetch" onSubmit=${send}>
        <${Field} id="fetch-model" label="Model" hint="hf:ORG/REPO/FILE.gguf, https://…/FILE.gguf, file:/path/model.gguf, or a name of the catalogue">
          <input id="fetch-model" name="model" required autocomplete="off" spellcheck=${false} />
        <//>
        <${Field} id="fetch-host" label="Onto">
          <${Select} id="fetch-host" name="hive" options=${hosts(hives)} onChange=${() => {}} />
        <//>
        <button type="submit">Fetch</button>
      </form>
    <//>
  `;
}

async function stop(workers, model, reload) {
  const names = workers.map((worker) => worker.id);
  const text = `${names.join(', ')} will finish what was begun and end. Requests for ${model} load it again where it fits.`;
  if (!(await confirm({ title: `Unload ${model}?`, text, action: 'Unload' }))) return;
  names.forEach((worker) => begin({ operation: 'worker_stop', worker_id: worker }, `Stopping ${worker}`, reload));
}

async function remove(model, hive, reload) {
  const text = `Its files on ${hive} (${bytes(model.size_bytes)}) will be gone. They can be fetched again.`;
  if (!(await confirm({ title: `Delete ${model.id} from ${hive}?`, text, action: 'Delete' }))) return;
  begin({ operation: 'model_delete', model: model.reference, hive_id: hive }, `Deleting ${model.id}`, reload);
}

/** How many must always run. */
function Keep({ model, reload }) {
  const send = (event) => {
    event.preventDefault();
    const { replicas, pin } = event.target.elements;
    const body = { model: model.id, replicas: Number(replicas.value), pin: pin.checked };
    attempt(() => call('/v1/serve', { method: 'POST', body }), body.replicas ? `${count(body.replicas, 'worker')} of ${model.id} will always run` : undefined).then(reload);
  };
  const end = () =>
    attempt(() => call(`/v1/serve?model=${encodeURIComponent(model.id)}`, { method: 'DELETE' }), `${model.id} runs on demand again`).then(reload);
  const { kept } = model;
  return html`
    <h3>Keep running</h3>
    <form class="row" onSubmit=${send}>
      <label class="row">Workers <input type="number" name="replicas" min="1" max="100" required defaultValue=${kept?.replicas ?? 1} /></label>
      <label class="check"><input type="checkbox" name="pin" defaultChecked=${kept?.pin} /> never evicted</label>
      <button type="submit">Keep</button>
      ${kept && html`<button type="button" onClick=${end}>End this</button>`}
    </form>
    ${kept && html`<p class="small muted">${kept.running} of ${count(kept.replicas, 'worker')} run${kept.reason ? `: ${kept.reason}` : ''}.</p>`}
  `;
}

/** All that can be done with a model. */
function Manage({ model, hives, reload, close }) {
  const [hive, setHive] = useState('');
  const load = () => begin({ operation: 'worker_spawn', model: model.reference, hive_id: hive || undefined }, `Loading ${model.id}`, reload);
  const pull = () => begin({ operation: 'model_pull', model: model.reference, hive_id: hive || undefined }, `Fetching ${model.id}`, reload);
  return html`
    <${Dialog} title=${model.id} onClose=${close}>
      <div class="stack">
        <p class="muted">
          ${[model.facts?.quantization, model.facts && `${quantity(model.facts.parameters / 1e9, 'billion parameters', 2)}`, model.context_length && `${number(model.context_length)} tokens of context`].filter(Boolean).join(' · ')}
        </p>
        <h3>One worker more</h3>
        <div class="row">
          <${Select} aria-label="Host" options=${hosts(hives)} value=${hive} onChange=${setHive} />
          <button type="button" onClick=${load}>Load</button>
          <button type="button" onClick=${pull}>Only fetch the files</button>
          <a href=${href('placement', { model: model.id })} onClick=${close}>Why there?</a>
        </div>
        <${Keep} model=${model} reload=${reload} />
        ${model.serving.length > 0 && html`<h3>Workers</h3>`}
        ${model.serving.map((worker) => html`<div key=${worker.id} class="row">
          <${Readiness} worker=${worker} /> <span>${worker.id}, ${worker.hive_id ?? 'no host'} ${worker.device}</span>
          <button type="button" onClick=${() => stop([worker], model.id, reload)}>Unload</button>
        </div>`)}
        ${model.holders.length > 0 && html`<h3>Files</h3>`}
        ${model.holders.map((holder) => html`<div key=${holder} class="row">
          <span>${bytes(model.size_bytes)} on ${holder}</span>
          <button type="button" onClick=${() => remove(model, holder, reload)}>Delete</button>
        </div>`)}
      </div>
      <div class="dialog-actions"><button type="button" onClick=${close}>Close</button></div>
    <//>
  `;
}

/** What is done most with a model in this state, and a way to the rest. */
function Actions({ model, manage, reload }) {
  const load = () => begin({ operation: 'worker_spawn', model: model.reference }, `Loading ${model.id}`, reload);
  const named = html`<span class="visually-hidden"> ${model.id}</span>`;
  return html`<div class="row actions-cell">
    ${model.serving.length === 0 && model.state !== 'loading'
      ? html`<button type="button" onClick=${load}>Load${named}</button>`
      : model.canChat && html`<a class="button" href=${href('chat', { model: model.id })}>Chat${named}</a>`}
    <button type="button" onClick=${() => manage(model.id)}>Manage${named}</button>
  </div>`;
}

const ready = (row) => (row.workers ? `${row.ready_workers} of ${row.workers} ready` : NOTHING);
/** Two of the hosts, and how many there are besides: rows stay low. */
const named = ({ hives }) => [...hives.slice(0, 2), ...(hives.length > 2 ? [`and ${hives.length - 2} more`] : [])].join(', ') || NOTHING;
const kept = ({ kept: it }) => it && html`<div class="small muted">${it.replicas} always${it.pin ? ', pinned' : ''}</div>`;
const columns = (manage, reload) => [
  {
    id: 'model',
    label: 'Model',
    width: '12.5rem',
    value: (row) => row.id,
    cell: (row) => html`<span class="break">${row.id}</span>${row.alias_of && html`<span class="small muted"> stands for ${row.alias_of}</span>`}`,
  },
  { id: 'state', label: 'State', width: '8.75rem', value: (row) => MODEL_STATES[row.state]?.rank ?? 9, cell: (row) => html`<${ModelState} state=${row.state} />` },
  { id: 'workers', label: 'Workers', width: '8rem', value: ready, cell: (row) => html`<div>${ready(row)}${kept(row)}</div>` },
  { id: 'size', label: 'Size', width: '5.5rem', align: 'end', value: (row) => row.size_bytes ?? 0, cell: (row) => bytes(row.size_bytes) },
  { id: 'context', label: 'Context', width: '8.5rem', align: 'end', value: (row) => row.context_length, cell: (row) => (row.context_length ? `${number(row.context_length)} tokens` : NOTHING) },
  { id: 'where', label: 'Hosts', width: '7.5rem', value: named, cell: (row) => html`<span title=${row.hives.join(', ')}>${named(row)}</span>` },
  { id: 'actions', label: '', width: '11rem', cell: (row) => html`<${Actions} model=${row} manage=${manage} reload=${reload} />` },
];

export default function Models() {
  const fleet = useFleet();
  const { models, stated, jobs, reload } = useModels();
  const [managed, manage] = useState(null);
  const [table] = useState(() => columns(manage, reload));
  const rows = useMemo(
    () => joined(models.data?.data ?? [], stated.data?.models ?? [], fleet),
    [models.data, stated.data, fleet.hives, fleet.workers],
  );
  const model = rows.find((row) => row.id === managed);
  const told = [models, stated, jobs];
  const error = told.find((resource) => resource.error)?.error;
  // All at once, so that nothing moves.
  const isTold = fleet.isLoaded && !told.some((resource) => resource.isLoading);
  const empty = html`<${Empty} icon="models" title="No model is known yet" command=${`rbee join ${location.origin}`}>
    A hive on a machine brings a catalogue of models, and the memory for them.
  <//>`;
  return html`
    <${Page} title="Models" lead="What runs, what lies on the hosts’ disks, and what could be fetched. A request for any of them loads it where it fits.">
      ${error && html`<${Failure} error=${error} retry=${reload} />`}
      ${isTold && html`<${Jobs} jobs=${jobs.data?.jobs ?? []} reload=${reload} />`}
      ${isTold && models.data && html`<${Table} caption="Models" columns=${table} rows=${rows} rowKey=${(row) => row.id} sortBy="state" empty=${empty} />`}
      ${isTold && fleet.hives.size > 0 && html`<${Fetch} hives=${fleet.hives} reload=${reload} />`}
      ${model && html`<${Manage} model=${model} hives=${fleet.hives} reload=${reload} close=${() => manage(null)} />`}
    <//>
  `;
}
