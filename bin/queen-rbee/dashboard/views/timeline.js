// What changed in the last hour: of workers, hosts, models and the queen herself, and why.

import { clock, count } from '../lib/format.js';
import { href } from '../lib/route.js';
import { KIND_ICONS, useTimeline } from '../lib/timeline.js';
import {
  Ago, Badge, Empty, Failure, Icon, Page, SearchField, Select, html, memo, useMemo, useNow, useState,
} from '../lib/ui.js';

const MINUTES = 60;
const SHOWN = 200;
const WORST = ['bad', 'warn', 'good', 'info'];
const KINDS = [
  { value: '', label: 'Everything' },
  { value: 'worker', label: 'Workers' },
  { value: 'hive', label: 'Hosts' },
  { value: 'model', label: 'Models' },
  { value: 'queen', label: 'The queen' },
];
const TONES = [
  { value: '', label: 'Good and bad' },
  { value: 'trouble', label: 'Trouble only' },
];

const isTrouble = (entry) => entry.tone === 'bad' || entry.tone === 'warn';

/** How many changes each minute of the last hour had, the oldest first, and the worst tone among them. */
function minutesOf(entries, now) {
  const minutes = Array.from({ length: MINUTES }, () => ({ count: 0, tone: 'info' }));
  const thisMinute = Math.floor(now / 60_000);
  for (const entry of entries) {
    const place = MINUTES - 1 - (thisMinute - Math.floor(Date.parse(entry.timestamp) / 60_000));
    const minute = minutes[place];
    if (!minute) continue;
    minute.tone = minute.count === 0 ? entry.tone : WORST.find((tone) => tone === minute.tone || tone === entry.tone);
    minute.count += 1;
  }
  return minutes;
}

/** The hour at a glance: a column for each minute. */
function Hour({ entries }) {
  const minute = Math.floor(useNow() / 60_000);
  const minutes = useMemo(() => minutesOf(entries, minute * 60_000), [entries, minute]);
  const most = Math.max(4, ...minutes.map((it) => it.count));
  const trouble = entries.filter(isTrouble).length;
  const label = `${count(entries.length, 'change')} in the last hour, ${trouble} of them trouble`;
  const time = (place) => clock((minute - MINUTES + 1 + place) * 60_000).slice(0, 5);
  return html`
    <figure class="hour">
      <div class="hour-columns" role="img" aria-label=${label}>
        ${minutes.map(
          (it, place) => html`<span title=${`${time(place)}: ${count(it.count, 'change')}`}>
            ${it.count > 0 && html`<i class="tone-${it.tone}" style=${{ height: `${Math.max(8, (it.count / most) * 100)}%` }}></i>`}
          </span>`,
        )}
      </div>
      <figcaption class="hour-times num">${[0, 15, 30, 45, 59].map((place) => html`<span>${time(place)}</span>`)}</figcaption>
    </figure>
  `;
}

/** Where more of an entry's subject is to be seen. */
function subjectLink({ kind, subject, change }) {
  if (kind === 'worker' && change !== 'left' && change !== 'lost') return href('logs', { worker: subject });
  if (kind === 'model') return href('placement', { model: subject });
  return kind === 'hive' ? href('fleet') : null;
}

const Entry = memo(({ entry }) => {
  const link = subjectLink(entry);
  return html`
    <li class="entry">
      <span class="entry-time num"><time datetime=${entry.timestamp}>${clock(entry.timestamp)}</time><span class="muted small"><${Ago} since=${entry.timestamp} /></span></span>
      <${Badge} tone=${entry.tone}>${entry.change.replaceAll('_', ' ')}<//>
      <span class="entry-text">
        <span class="entry-subject"><${Icon} name=${KIND_ICONS[entry.kind] ?? 'info'} size="14" />
          ${link ? html`<a href=${link}>${entry.subject}</a>` : html`<b>${entry.subject}</b>`}
          ${entry.hive && entry.kind !== 'hive' && html`<span class="muted small">on ${entry.hive}${entry.device ? ` ${entry.device}` : ''}</span>`}
        </span>
        <span>${entry.text}</span>
      </span>
    </li>
  `;
});

function Entries({ entries, isFiltered }) {
  const [shown, show] = useState(SHOWN);
  if (entries.length === 0 && isFiltered) {
    return html`<${Empty} icon="search" title="Nothing like that in the last hour">Choose other words, or everything.<//>`;
  }
  if (entries.length === 0) {
    return html`<${Empty} icon="timeline" title="Nothing changed in the last hour">
      A worker that starts, a host that falls silent, a model that is loaded: whatever happens is told here, and why.
    <//>`;
  }
  return html`
    <ol class="entries">${entries.slice(0, shown).map((entry) => html`<${Entry} key=${entry.id} entry=${entry} />`)}</ol>
    ${shown < entries.length &&
    html`<p><button type="button" onClick=${() => show(shown + SHOWN)}>Show ${Math.min(SHOWN, entries.length - shown)} more</button></p>`}
  `;
}

export default function Timeline() {
  const { entries, keptSince, error } = useTimeline();
  const [kind, setKind] = useState('');
  const [tone, setTone] = useState('');
  const [text, setText] = useState('');
  const wanted = text.toLowerCase();
  const shown = useMemo(
    () =>
      (entries ?? []).filter(
        (entry) =>
          (!kind || entry.kind === kind) &&
          (!tone || isTrouble(entry)) &&
          (!wanted || `${entry.subject} ${entry.text} ${entry.change}`.toLowerCase().includes(wanted)),
      ),
    [entries, kind, tone, wanted],
  );
  const actions = html`
    <${Select} aria-label="Of what" options=${KINDS} value=${kind} onChange=${setKind} />
    <${Select} aria-label="Which tone" options=${TONES} value=${tone} onChange=${setTone} />
    <${SearchField} label="Find in the timeline" value=${text} onInput=${setText} />
  `;
  return html`
    <${Page} title="Timeline" lead="What changed in the last hour, and why." actions=${actions}>
      ${error && !entries && html`<${Failure} error=${error} />`}
      ${entries &&
      html`
        <${Hour} entries=${shown} />
        <${Entries} entries=${shown} isFiltered=${Boolean(kind || tone || wanted)} />
        ${keptSince && html`<p class="muted small">The queen remembers since ${clock(keptSince)}: she keeps one hour, and forgets it when she restarts.</p>`}
      `}
    <//>
  `;
}
