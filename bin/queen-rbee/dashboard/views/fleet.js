// Hosts with their devices, workers with their state, and what changed lately.

import { call, hasSecrets } from '../lib/api.js';
import { useFleet } from '../lib/fleet.js';
import { clock, count, duration, megabytes, number, percent, quantity, words } from '../lib/format.js';
import { jobDone, startJob } from '../lib/jobs.js';
import { href } from '../lib/route.js';
import { useTimeline } from '../lib/timeline.js';
import {
  Ago, Badge, Bar, Card, Empty, Icon, Liveness, Page, Readiness, SearchField, Section, Stat, Stats, Table,
  attempt, confirm, html, memo, readiness, toast, useMemo, useState,
} from '../lib/ui.js';

const HOSTS_SHOWN = 24;
const LATELY = 4;

const sum = (list, of) => list.reduce((total, it) => total + (of(it) ?? 0), 0);
const host = (member) => member.base_url.replace(/^https?:\/\//, '');

// ---- hosts ------------------------------------------------------------------------------------------------------------

/** Memory by whose it is: what workers hold, what others hold, what is free. */
function memoryOf(device, workers) {
  const own = workers.filter((process) => process.device === device.id);
  const used = device.vram_used_mb ?? 0;
  const others = device.vram_foreign_mb ?? Math.max(0, used - sum(own, (process) => process.vram_mb));
  return { ours: Math.max(0, used - others), others, total: device.vram_total_mb ?? 0, workers: own.length };
}

const PARTS = ({ ours, others }) => [
  { value: ours, tone: 'ours' },
  { value: others, tone: 'others' },
];

/** A bar of memory, with its key below it. */
function Memory({ memory, name, owner }) {
  const free = Math.max(0, memory.total - memory.ours - memory.others);
  const of = owner ? ` (${owner.name ?? `process ${owner.pid}`})` : '';
  const text = `${name}: workers ${megabytes(memory.ours)}, others${of} ${megabytes(memory.others)}, free ${megabytes(free)} of ${megabytes(memory.total)}`;
  return html`
    <${Bar} parts=${PARTS(memory)} total=${memory.total} label=${text} />
    <p class="device-memory num">
      <span><i class="key part-ours"></i>workers ${megabytes(memory.ours)}</span>
      <span class="ellipsis"><i class="key part-others"></i>others${of} ${megabytes(memory.others)}</span>
      <span class="device-free">${megabytes(free)} free of ${megabytes(memory.total)}</span>
    </p>
  `;
}

/** What tells devices of one maker apart. */
const shortName = (name) => name?.replace(/^(NVIDIA|AMD|Intel)( GeForce| Radeon)? /, '');

function Device({ id, name, facts, children }) {
  return html`
    <li class="device">
      <p class="device-head">
        <b>${id}</b><span class="muted ellipsis" title=${name}>${shortName(name)}</span>
        <span class="device-facts num">${facts.filter(Boolean).join(' · ')}</span>
      </p>
      ${children}
    </li>
  `;
}

function Gpu({ device, info, workers }) {
  const { power_watts: power, power_limit_watts: limit } = device;
  const facts = [
    device.util_percent !== null && device.util_percent !== undefined && `${number(device.util_percent)} % busy`,
    device.temperature_celsius && `${number(device.temperature_celsius)} °C`,
    power && (limit ? `${number(power)} of ${number(limit)} W` : `${number(power)} W`),
  ];
  return html`
    <${Device} id=${device.id} name=${info?.name} facts=${facts}>
      <${Memory} memory=${memoryOf(device, workers)} name=${`Memory of ${device.id}`} owner=${device.owner} />
    <//>
  `;
}

function Processor({ hive, info }) {
  const { monitor } = hive;
  const ours = sum(hive.workers, (process) => process.rss_mb);
  const memory = {
    ours: Math.min(ours, monitor.ram_used_mb),
    others: Math.max(0, monitor.ram_used_mb - ours),
    total: monitor.ram_total_mb,
  };
  return html`
    <${Device} id="cpu" name=${info?.name ?? 'Processor'} facts=${[`${number(monitor.cpu_usage_percent)} % busy`]}>
      <${Memory} memory=${memory} name="Main memory" />
    <//>
  `;
}

async function drainHost(hive) {
  const text = `${hive.id} gets no new workers. Those that run finish their requests, move elsewhere where they must, and end. You can take it back at any time.`;
  if (await confirm({ title: `Drain ${hive.id}?`, text, action: 'Drain the host' })) {
    attempt(() => call(`/v1/hives/${encodeURIComponent(hive.id)}/drain`, { method: 'POST' }), `${hive.id} is being drained.`);
  }
}

function takeHostBack(hive) {
  attempt(
    () => call(`/v1/hives/${encodeURIComponent(hive.id)}/drain`, { method: 'DELETE' }),
    `${hive.id} takes new workers again.`,
  );
}

function HostState({ hive }) {
  if (hive.liveness !== 'online') return html`<${Liveness} member=${hive} />`;
  if (hive.drained) return html`<${Badge} tone="warn" icon="drain">drained<//>`;
  if (hive.health_status !== 'healthy') {
    return html`<${Badge} tone=${hive.health_status === 'unhealthy' ? 'bad' : 'warn'}>${hive.health_status}<//>`;
  }
  if (hive.operational_status !== 'ready') return html`<${Badge} tone="info" icon="busy">${words(hive.operational_status)}<//>`;
  return html`<${Liveness} member=${hive} />`;
}

/** What is to be said below a host's name: what is wrong, or else where it is. */
function HostRemark({ hive }) {
  const why = hive.reason ?? (hive.health_status === 'healthy' ? null : hive.health_reason);
  if (why) return html`<p class="host-remark tone-warn ellipsis" title=${why}>${why}</p>`;
  return html`
    <p class="host-remark muted ellipsis num">
      ${host(hive)} · hive ${hive.version} · up ${duration(hive.monitor.uptime_s * 1000)}
    </p>
  `;
}

const Host = memo(({ hive }) => {
  const infos = new Map((hive.capabilities?.devices ?? []).map((device) => [device.id, device]));
  const models = hive.capabilities?.models.length ?? 0;
  return html`
    <${Card} class=${`host${hive.liveness === 'online' ? '' : ' is-away'}`}>
      <div class="host-head">
        <div class="host-name">
          <h3 class="ellipsis">${hive.id}</h3>
          <${HostRemark} hive=${hive} />
        </div>
        <${HostState} hive=${hive} />
      </div>
      <ul class="devices">
        ${hive.monitor.devices.map(
          (device) => html`<${Gpu} key=${device.id} device=${device} info=${infos.get(device.id)} workers=${hive.workers} />`,
        )}
        <${Processor} key="cpu" hive=${hive} info=${infos.get('cpu')} />
      </ul>
      <div class="host-foot">
        <span class="muted small num">
          ${count(hive.workers.length, 'worker')} · ${count(models, 'model')} on disk · beat <${Ago} since=${hive.at - hive.last_beat_age_ms} />
        </span>
        ${hive.drained
          ? html`<button type="button" class="quiet" onClick=${() => takeHostBack(hive)}>Take back</button>`
          : html`<button type="button" class="quiet" onClick=${() => drainHost(hive)}>Drain</button>`}
      </div>
    <//>
  `;
});

/** How the first host is had: from here, or from another machine if the queen can be reached by it. */
function NoHost() {
  const isLocal = /^(localhost|127\.|\[::1)/.test(location.hostname);
  const token = hasSecrets() ? ' --token TOKEN' : '';
  return html`
    <${Empty} icon="fleet" title="No host yet" command=${`rbee join ${location.origin}${token}`}>
      Run it on ${isLocal ? 'this machine' : 'each machine whose devices should work for you'}, and it shows up here.
      ${isLocal && ' Other machines can join once the queen listens where they reach her: --host 0.0.0.0, with a token.'}
    <//>
  `;
}

function Hosts({ hives }) {
  const [isAll, showAll] = useState(false);
  const shown = isAll ? hives : hives.slice(0, HOSTS_SHOWN);
  return html`
    <${Section} title="Hosts">
      ${hives.length === 0 && html`<${NoHost} />`}
      <div class="grid hosts">${shown.map((hive) => html`<${Host} key=${hive.id} hive=${hive} />`)}</div>
      ${shown.length < hives.length &&
      html`<p><button type="button" onClick=${() => showAll(true)}>Show all ${hives.length} hosts</button></p>`}
    <//>
  `;
}

// ---- workers ----------------------------------------------------------------------------------------------------------

async function stopWorker(worker, operation) {
  const isStop = operation === 'worker_stop';
  const text = isStop
    ? `${worker.id} finishes its requests within the grace period, then its process ends. ${worker.model_id} is loaded again when a request needs it.`
    : `${worker.id} takes nothing new, finishes its requests however long they take, then its process ends.`;
  const title = `${isStop ? 'Stop' : 'Drain'} ${worker.id}?`;
  if (!(await confirm({ title, text, action: isStop ? 'Stop the worker' : 'Drain the worker' }))) return;
  const isDone = await attempt(async () => jobDone(await startJob({ operation, worker_id: worker.id })));
  if (isDone !== undefined) toast(isDone ? `${worker.id} has ended.` : `The job on ${worker.id} was cancelled.`, isDone ? 'good' : 'warn');
}

const TwoLines = ({ first, second, title }) => html`
  <span class="two-lines" title=${title}><span class="ellipsis">${first}</span><span class="muted small ellipsis">${second}</span></span>
`;

function WorkerState({ worker }) {
  // The badge has the first word already.
  const reason = worker.reason?.replace(/^(starting|draining|failed)([,:] |$)/, '');
  return html`
    <span class="two-lines" title=${worker.reason}>
      <span class="row state-badges">
        ${worker.liveness === 'online' ? html`<${Readiness} worker=${worker} />` : html`<${Liveness} member=${worker} />`}
      </span>
      <span class="muted small ellipsis">${reason ?? `since ${clock(worker.at - worker.since_ms_ago).slice(0, 5)}`}</span>
    </span>
  `;
}

function WorkerActions({ worker }) {
  const button = (label, icon, onClick) => html`
    <button type="button" class="icon-button" aria-label=${`${label} ${worker.id}`} title=${label} onClick=${onClick}>
      <${Icon} name=${icon} />
    </button>
  `;
  return html`
    <span class="worker-actions">
      <a class="button icon-button" href=${href('logs', { worker: worker.id })} aria-label=${`Logs of ${worker.id}`} title="Logs">
        <${Icon} name="logs" />
      </a>
      ${button('Drain', 'drain', () => stopWorker(worker, 'worker_drain'))}
      ${button('Stop', 'stop', () => stopWorker(worker, 'worker_stop'))}
    </span>
  `;
}

/** What a worker that is not there said last is not so any more. */
const now = (worker, value) => (worker.liveness === 'lost' ? null : value);
/** Requests that it has: as it said, or as the queen gave them since. */
const taken = (worker) => now(worker, Math.max(worker.load.running, worker.leases));
const speedOf = (worker) => now(worker, worker.load.tokens_per_second);
const held = ({ process }) => process?.vram_mb ?? process?.rss_mb ?? null;

const WORKER_COLUMNS = [
  {
    id: 'model',
    label: 'Model',
    width: '23%',
    value: (worker) => worker.model_id,
    cell: (worker) => html`<${TwoLines} first=${html`<b>${worker.model_id}</b>`} second=${worker.id} title=${`${worker.model_id}, ${worker.id}`} />`,
  },
  {
    id: 'where',
    label: 'Where',
    width: '13%',
    value: (worker) => `${worker.hive_id ?? ''} ${worker.device}`,
    cell: (worker) => html`<${TwoLines} first=${worker.hive_id ?? host(worker)} second=${worker.device} />`,
  },
  {
    id: 'state',
    label: 'State',
    width: '24%',
    value: (worker) => `${worker.liveness} ${readiness(worker).word}`,
    cell: (worker) => html`<${WorkerState} worker=${worker} />`,
  },
  {
    id: 'slots',
    label: 'Requests',
    width: '12%',
    value: taken,
    cell: (worker) => html`
      <span class="load">
        <span class="small num">${number(taken(worker))} of ${count(worker.slots, 'slot')}</span>
        <${Bar} value=${taken(worker)} total=${worker.slots} label=${`${number(taken(worker))} of ${worker.slots} slots taken`} />
      </span>
    `,
  },
  { id: 'speed', label: 'Speed', width: '10%', align: 'end', value: speedOf, cell: (worker) => quantity(speedOf(worker), 'tok/s') },
  { id: 'memory', label: 'Memory', width: '10%', align: 'end', value: held, cell: (worker) => megabytes(held(worker)) },
  { id: 'actions', label: '', width: '7.5rem', align: 'end', cell: (worker) => html`<${WorkerActions} worker=${worker} />` },
];

const isLike = (worker, text) =>
  [worker.id, worker.model_id, worker.hive_id, worker.device, worker.liveness, readiness(worker).word].some((field) =>
    field?.toLowerCase().includes(text),
  );

function Workers({ workers }) {
  const [text, setText] = useState('');
  const shown = useMemo(() => (text ? workers.filter((worker) => isLike(worker, text.toLowerCase())) : workers), [workers, text]);
  const none = text
    ? html`<${Empty} icon="search" title=${`No worker is like “${text}”`}>The search looks at id, model, host, device and state.<//>`
    : html`<${Empty} icon="play" title="No worker runs" command=${`rbee run smollm2-135m-instruct "Say hello."`}>
        Ask a model something and it is loaded where it fits; or load one on the <a href=${href('models')}>Models</a> page.
      <//>`;
  const search = workers.length > 8 && html`<${SearchField} label="Find a worker" value=${text} onInput=${setText} />`;
  return html`
    <${Section} title="Workers" actions=${search}>
      <${Table}
        caption="Workers"
        columns=${WORKER_COLUMNS}
        rows=${shown}
        rowKey=${(worker) => worker.id}
        sortBy="where"
        empty=${none}
      />
    <//>
  `;
}

// ---- the page ---------------------------------------------------------------------------------------------------------

/** How many members are not there, in words; null if all are. */
function trouble(members) {
  const words = ['suspect', 'unreachable', 'lost'].map((word) => [members.filter((member) => member.liveness === word).length, word]);
  return words.filter(([many]) => many).map(([many, word]) => `${many} ${word}`).join(', ') || null;
}

function Summary({ fleet, hives, workers }) {
  const present = hives.filter((hive) => hive.liveness === 'online');
  const gpus = present.flatMap((hive) => hive.monitor.devices);
  const memory = hives.some((hive) => hive.monitor.devices.length > 0)
    ? { label: 'GPU memory', used: sum(gpus, (gpu) => gpu.vram_used_mb), total: sum(gpus, (gpu) => gpu.vram_total_mb) }
    : { label: 'Main memory', used: sum(present, (hive) => hive.monitor.ram_used_mb), total: sum(present, (hive) => hive.monitor.ram_total_mb) };
  const power = sum(gpus, (gpu) => gpu.power_watts);
  const speed = sum(workers, speedOf);
  const ready = workers.filter((worker) => worker.ready);
  const [noHosts, noWorkers] = [trouble(hives), trouble(workers)];
  return html`
    <${Stats}>
      <${Stat} label="Hosts online" value=${`${present.length} of ${hives.length}`} detail=${noHosts ?? (gpus.length > 0 ? count(gpus.length, 'GPU') : 'no GPU')} tone=${noHosts ? 'warn' : undefined} />
      <${Stat} label="Workers ready" value=${`${ready.length} of ${workers.length}`} detail=${noWorkers ?? count(sum(ready, (worker) => worker.slots), 'slot')} tone=${noWorkers ? 'warn' : undefined} />
      <${Stat} label="Requests in flight" value=${number(fleet.inflight)} detail=${`${number(fleet.waiting)} waiting`} />
      <${Stat} label="Speed" value=${quantity(speed, 'tok/s')} detail="all workers, now" />
      <${Stat} label=${memory.label} value=${percent(memory.total ? memory.used / memory.total : null)} detail=${`${megabytes(memory.used)} of ${megabytes(memory.total)}`} />
      <${Stat} label="Power" value=${quantity(power || null, 'W', 0)} detail=${power > 0 ? 'all GPUs, now' : 'no GPU tells it'} />
    <//>
  `;
}

function Lately() {
  const { entries } = useTimeline();
  return html`
    <${Section} title="Lately" actions=${html`<a href=${href('timeline')}>The last hour</a>`}>
      <ol class="lately">
        ${(entries ?? []).slice(0, LATELY).map(
          (entry) => html`<li key=${entry.id} class="tone-${entry.tone}">
            <${Icon} name=${entry.tone} size="15" />
            <time class="num muted" datetime=${entry.timestamp}>${clock(entry.timestamp)}</time>
            <span class="ellipsis" title=${entry.text}>${entry.text}</span>
          </li>`,
        )}
        ${entries?.length === 0 && html`<li class="muted">Nothing changed in the last hour.</li>`}
      </ol>
    <//>
  `;
}

const sorted = (members) => [...members.values()].sort((left, right) => left.id.localeCompare(right.id, 'en', { numeric: true }));

export default function Fleet() {
  const fleet = useFleet();
  const hives = useMemo(() => sorted(fleet.hives), [fleet.hives]);
  const workers = useMemo(() => [...fleet.workers.values()], [fleet.workers]);
  return html`
    <${Page} title="Fleet" lead="Every machine, every device, every worker: as they are now.">
      ${fleet.isLoaded
        ? html`
            <${Summary} fleet=${fleet} hives=${hives} workers=${workers} />
            <${Hosts} hives=${hives} />
            <${Workers} workers=${workers} />
            <${Lately} />
          `
        : html`<p class="pending">Waiting for the queen to tell of her fleet.</p>`}
    <//>
  `;
}
