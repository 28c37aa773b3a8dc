// What a worker prints: its last lines, and those to come.

import { useFleet } from '../lib/fleet.js';
import { count } from '../lib/format.js';
import { cancelJob, followJob, startJob } from '../lib/jobs.js';
import { go, href } from '../lib/route.js';
import {
  Badge, Empty, Failure, Page, SearchField, Select, html, memo, useCallback, useEffect, useLayoutEffect, useMemo,
  useRef, useState,
} from '../lib/ui.js';

const LENGTHS = ['100', '500', '2000', '10000'].map((lines) => ({ value: lines, label: `Last ${Number(lines).toLocaleString('en')} lines` }));
/** Lines that are kept; the oldest go. */
const KEPT = 10_000;
const ESCAPES = new RegExp('\u001b\\[[0-9;?]*[A-Za-z]', 'g');
const LEVEL = /\b(ERROR|WARN)\b/;

/**
 * Reads a worker's log: `{chunks, state, error}`, chunks of lines as they came, state `reading`, `following`, `ended`.
 * Lines that come within one frame are drawn together.
 */
function useLog(workerId, lines, isFollowing, round) {
  const [log, setLog] = useState({ chunks: [], state: 'reading', error: null });
  useEffect(() => {
    setLog({ chunks: [], state: 'reading', error: null });
    if (!workerId) return undefined;
    const abort = new AbortController();
    let job = null;
    let fresh = [];
    let number = 0;
    const draw = () => {
      if (abort.signal.aborted || fresh.length === 0) return;
      number += 1;
      const chunk = { id: number, lines: fresh };
      fresh = [];
      setLog((before) => ({ ...before, chunks: kept([...before.chunks, chunk]), state: isFollowing ? 'following' : 'reading' }));
    };
    const told = ({ state, message }) => {
      if (state !== 'running' || !message) return;
      if (fresh.length === 0) requestAnimationFrame(draw);
      fresh.push(...message.replace(ESCAPES, '').replace(/\n$/, '').split('\n'));
    };
    const read = async () => {
      job = await startJob({ operation: 'worker_logs', worker_id: workerId, lines: Number(lines), follow: isFollowing });
      if (abort.signal.aborted) return cancelJob(job).catch(() => {});
      const last = await followJob(job, told, abort.signal);
      job = null;
      if (last.state === 'failed') throw new Error(last.error?.message ?? 'the log cannot be read');
      draw();
      return setLog((before) => ({ ...before, state: 'ended' }));
    };
    read().catch((error) => {
      if (!abort.signal.aborted) setLog((before) => ({ ...before, state: 'ended', error }));
    });
    return () => {
      abort.abort();
      if (job) cancelJob(job).catch(() => {});
    };
  }, [workerId, lines, isFollowing, round]);
  return log;
}

function kept(chunks) {
  let total = chunks.reduce((sum, chunk) => sum + chunk.lines.length, 0);
  let first = 0;
  while (total > KEPT && first < chunks.length - 1) {
    total -= chunks[first].lines.length;
    first += 1;
  }
  return chunks.slice(first);
}

/** A line with what is looked for marked. */
function marked(line, wanted) {
  const parts = [];
  let from = 0;
  const lower = line.toLowerCase();
  for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
    parts.push(line.slice(from, at), html`<mark>${line.slice(at, at + wanted.length)}</mark>`);
    from = at + wanted.length;
  }
  return [...parts, line.slice(from)];
}

const isLike = (line, wanted) => line.toLowerCase().includes(wanted);

const Chunk = memo(({ lines, wanted }) => {
  const shown = wanted ? lines.filter((line) => isLike(line, wanted)) : lines;
  return shown.map((line) => {
    const level = LEVEL.exec(line)?.[1];
    return html`<div class=${level ? `line-${level.toLowerCase()}` : undefined}>${wanted ? marked(line, wanted) : line || '\u00a0'}</div>`;
  });
});

/** The lines; stays at the end while the reader is there. */
function Lines({ log, wanted, isWrapped, name }) {
  const element = useRef(null);
  const isAtEnd = useRef(true);
  useLayoutEffect(() => {
    if (isAtEnd.current) element.current.scrollTop = element.current.scrollHeight;
  }, [log.chunks, wanted]);
  const scrolled = useCallback(() => {
    const { scrollTop, scrollHeight, clientHeight } = element.current;
    isAtEnd.current = scrollHeight - scrollTop - clientHeight < 24;
  }, []);
  return html`
    <div
      class=${`log${isWrapped ? ' is-wrapped' : ''}`}
      ref=${element}
      onScroll=${scrolled}
      role="region"
      aria-label=${`Log of ${name}`}
      tabindex="0"
    >
      ${log.chunks.map((chunk) => html`<${Chunk} key=${chunk.id} lines=${chunk.lines} wanted=${wanted} />`)}
    </div>
  `;
}

const STATES = {
  reading: { tone: 'info', icon: 'busy', text: 'reading' },
  following: { tone: 'good', icon: 'play', text: 'following' },
  ended: { tone: 'muted', text: 'read to its end' },
};

function Log({ workerId }) {
  const [lines, setLines] = useState('500');
  const [isFollowing, follow] = useState(true);
  const [isWrapped, wrap] = useState(false);
  const [text, setText] = useState('');
  const [round, setRound] = useState(0);
  const log = useLog(workerId, lines, isFollowing, round);
  const wanted = text.toLowerCase();
  const found = useMemo(
    () => log.chunks.reduce((sum, chunk) => sum + (wanted ? chunk.lines.filter((line) => isLike(line, wanted)).length : chunk.lines.length), 0),
    [log.chunks, wanted],
  );
  const { tone, icon, text: word } = STATES[log.state];
  return html`
    <div class="row log-tools">
      <${SearchField} label="Find in the log" value=${text} onInput=${setText} />
      <${Select} aria-label="How much" options=${LENGTHS} value=${lines} onChange=${setLines} />
      <label class="check"><input type="checkbox" checked=${isFollowing} onChange=${(event) => follow(event.target.checked)} /> Follow</label>
      <label class="check"><input type="checkbox" checked=${isWrapped} onChange=${(event) => wrap(event.target.checked)} /> Wrap lines</label>
      <span class="row log-state">
        <span class="muted small num">${count(found, wanted ? 'line like it' : 'line', wanted ? 'lines like it' : 'lines')}</span>
        <${Badge} tone=${tone} icon=${icon ?? tone}>${word}<//>
        <button type="button" disabled=${log.state !== 'ended'} onClick=${() => setRound(round + 1)}>Read again</button>
      </span>
    </div>
    ${log.error && html`<${Failure} error=${log.error} retry=${() => setRound(round + 1)} />`}
    <${Lines} log=${log} wanted=${wanted} isWrapped=${isWrapped} name=${workerId} />
  `;
}

/** What there is to choose: the workers of hives, and the one that the address names even if it is gone. */
function choices(workers, chosen) {
  const options = [...workers.values()]
    .sort((left, right) => left.model_id.localeCompare(right.model_id) || left.id.localeCompare(right.id))
    .map((worker) => ({ value: worker.id, label: `${worker.model_id} · ${worker.id} · ${worker.hive_id ?? 'no hive'}` }));
  if (chosen && !workers.has(chosen)) options.unshift({ value: chosen, label: `${chosen} · not there any more` });
  return chosen ? options : [{ value: '', label: 'Choose a worker' }, ...options];
}

export default function Logs({ params }) {
  const { workers, isLoaded } = useFleet();
  const named = params.get('worker');
  // The only one is chosen by itself, and stays so when others come.
  const first = useRef('');
  if (workers.size === 1) first.current ||= [...workers.keys()][0];
  const chosen = named ?? first.current;
  const actions = (workers.size > 0 || named) && html`
    <${Select}
      aria-label="Worker"
      class="worker-choice"
      options=${choices(workers, chosen)}
      value=${chosen}
      onChange=${(worker) => go('logs', { worker })}
    />
  `;
  return html`
    <${Page} title="Logs" lead="What a worker prints, from the host where it runs." actions=${actions}>
      ${chosen && html`<${Log} key=${chosen} workerId=${chosen} />`}
      ${!chosen && isLoaded &&
      html`<${Empty} icon="logs" title=${workers.size > 0 ? 'Choose a worker' : 'No worker runs'} command="rbee logs WORKER -f">
        ${workers.size > 0
          ? 'Its log is on the host that started it; the queen fetches it from there.'
          : html`Load a model on the <a href=${href('models')}>Models</a> page; what its worker prints can be read here.`}
      <//>`}
    <//>
  `;
}
