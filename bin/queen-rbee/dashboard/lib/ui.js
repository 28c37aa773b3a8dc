// The pieces that pages are made of. No colour alone carries meaning: a word or an icon stands beside it.

import { Component, h } from '../vendor/preact.js';
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from '../vendor/hooks.js';
import htm from '../vendor/htm.js';
import { call, secretsTold } from './api.js';
import { NOTHING, ago, percent, words } from './format.js';
import { Icon } from './icons.js';
import { store, useStore } from './store.js';

export { Fragment } from '../vendor/preact.js';
export {
  useCallback, useEffect, useErrorBoundary, useId, useLayoutEffect, useMemo, useRef, useState,
} from '../vendor/hooks.js';
export { Icon };

export const html = htm.bind(h);

/** A component that is drawn again only when one of its properties is another object or value. */
export function memo(draw) {
  return class Memo extends Component {
    shouldComponentUpdate(next) {
      const names = Object.keys(next);
      return names.length !== Object.keys(this.props).length || names.some((name) => next[name] !== this.props[name]);
    }

    render(props) {
      return draw(props);
    }
  };
}

// ---- time -------------------------------------------------------------------------------------------------------------

const tickers = new Set();
setInterval(() => !document.hidden && tickers.forEach((tick) => tick(Date.now())), 1000);

/** The wall clock in milliseconds, once a second. */
export function useNow() {
  const [now, tick] = useState(Date.now);
  useEffect(() => {
    tickers.add(tick);
    return () => tickers.delete(tick);
  }, []);
  return now;
}

/** How long ago: `since` in milliseconds of Date.now(), or an RFC 3339 text. Goes on counting. */
export function Ago({ since }) {
  const now = useNow();
  const at = typeof since === 'number' ? since : Date.parse(since);
  if (!Number.isFinite(at)) return NOTHING;
  return html`<time class="num" datetime=${new Date(at).toISOString()}>${ago(Math.max(0, now - at))}</time>`;
}

// ---- calls ------------------------------------------------------------------------------------------------------------

/**
 * JSON of a path, null for none yet: `{data, error, isLoading, reload}`. Asked again every `everyMs` while the page is
 * seen, when `path` changes, and when a secret is told. What was there stays while it is asked again. `reload` lets a call
 * that is under way end, and asks once more then. What is refused for want of a secret is not asked for by the clock: the
 * person has said "not now".
 */
export function useResource(path, { everyMs = 0 } = {}) {
  const [told, tell] = useState({ path: null, data: null, error: null });
  const secrets = useStore(secretsTold);
  const again = useRef(null);
  useEffect(() => {
    if (!path) return undefined;
    const abort = new AbortController();
    let [timer, isAsking, isWanted] = [null, false, false];
    const ask = async () => {
      clearTimeout(timer);
      isWanted = isAsking;
      if (isAsking) return;
      isAsking = true;
      let isLocked = false;
      try {
        const data = document.hidden && everyMs ? undefined : await call(path, { signal: abort.signal });
        if (data !== undefined) tell({ path, data, error: null });
      } catch (error) {
        if (abort.signal.aborted) return;
        isLocked = error.status === 401;
        tell((before) => ({ path, data: before.path === path ? before.data : null, error }));
      }
      isAsking = false;
      if (abort.signal.aborted) return;
      if (isWanted) ask();
      else if (everyMs && !isLocked) timer = setTimeout(ask, everyMs);
    };
    ask();
    again.current = ask;
    return () => {
      again.current = null;
      abort.abort();
      clearTimeout(timer);
    };
  }, [path, everyMs, secrets]);
  const reload = useCallback(() => again.current?.(), []);
  const isCurrent = told.path === path;
  return { data: isCurrent ? told.data : null, error: isCurrent ? told.error : null, isLoading: !isCurrent, reload };
}

// ---- words ------------------------------------------------------------------------------------------------------------

/** A word with its icon, in a tone: `good`, `info`, `warn`, `bad`, `muted`. */
export const Badge = ({ tone = 'muted', icon = tone, title, children }) =>
  html`<span class="badge tone-${tone}" title=${title}><${Icon} name=${icon} size="13" />${children}</span>`;

const LIVENESS = { online: 'good', suspect: 'warn', unreachable: 'bad', lost: 'bad' };

/** Whether a hive or worker is there. */
export const Liveness = ({ member }) => html`<${Badge} tone=${LIVENESS[member.liveness] ?? 'muted'}>${member.liveness}<//>`;

/** The tone and word of whether a worker takes requests. */
export function readiness(worker) {
  if (worker.ready) return { tone: 'good', word: 'ready' };
  if (worker.liveness !== 'online') return { tone: 'bad', word: 'no requests' };
  const known = {
    ready: { tone: 'info', icon: 'busy', word: 'full' },
    busy: { tone: 'info', icon: 'busy', word: 'full' },
    starting: { tone: 'info', icon: 'busy', word: 'starting' },
    draining: { tone: 'warn', icon: 'drain', word: 'draining' },
    failed: { tone: 'bad', word: 'failed' },
  };
  return known[worker.status] ?? { tone: 'muted', word: words(worker.status) };
}

/** Whether a worker takes requests. */
export function Readiness({ worker }) {
  const { tone, icon = tone, word } = readiness(worker);
  return html`<${Badge} tone=${tone} icon=${icon} title=${worker.reason}>${word}<//>`;
}

/** A command to paste. */
export const Command = ({ children }) => html`<code class="command">${children}</code>`;

/** Where nothing is yet: what it means, and what to do next, with the command for it. */
export const Empty = ({ icon = 'info', title, command, children }) => html`
  <div class="empty">
    <${Icon} name=${icon} size="28" />
    <p class="empty-title">${title}</p>
    ${children && html`<p>${children}</p>`}
    ${command && html`<${Command}>${command}<//>`}
  </div>
`;

/** What went wrong, in the daemon's words. */
export const Failure = ({ error, retry }) => html`
  <div class="notice tone-bad" role="alert">
    <${Icon} name="bad" />
    <p>${error.message}</p>
    ${retry && html`<button type="button" onClick=${retry}>Try again</button>`}
  </div>
`;

/** Something that the reader should know, in a tone. */
export const Notice = ({ tone = 'info', children }) =>
  html`<div class="notice tone-${tone}"><${Icon} name=${tone} /><div>${children}</div></div>`;

// ---- amounts ----------------------------------------------------------------------------------------------------------

/**
 * A bar of parts of a total: `parts` is `[{value, label, tone}]`, tone one of `ours`, `others`, `reserved`, `good`, `warn`,
 * `bad`. `label` says it all for screen readers. `value` instead of parts: one part, in the warning tones when nearly full.
 */
export function Bar({ parts, value, total = 1, label }) {
  const share = (amount) => (total > 0 ? Math.min(1, Math.max(0, amount / total)) : 0);
  const shown = parts ?? [{ value: value ?? 0, tone: share(value ?? 0) > 0.92 ? 'warn' : 'ours' }];
  return html`<div class="bar" role="img" aria-label=${label} title=${label}>
    ${shown.map((part) => html`<span class="part-${part.tone}" style=${{ width: `${share(part.value) * 100}%` }}></span>`)}
  </div>`;
}

/** How far something is: `value` of `max`; without a value it only says that it goes on. */
export const Progress = ({ value = null, max = 1, label, detail }) => html`
  <div class="progress">
    <div class="progress-head">
      <span>${label}</span><span class="num muted">${detail ?? (value === null ? '' : percent(value / max))}</span>
    </div>
    <progress value=${value ?? undefined} max=${max} aria-label=${label}></progress>
  </div>
`;

/** A figure with its name, and a remark below it. */
export const Stat = ({ label, value, detail, tone }) => html`
  <div class="stat${tone ? ` tone-${tone}` : ''}">
    <dt>${label}</dt>
    <dd><span class="stat-value num">${value}</span><span class="stat-detail num">${detail ?? '\u00a0'}</span></dd>
  </div>
`;

export const Stats = ({ children }) => html`<dl class="stats">${children}</dl>`;

// ---- lay-out ----------------------------------------------------------------------------------------------------------

/** A page: its title, one sentence on what it shows, its actions on the right. */
export function Page({ title, lead, actions, children }) {
  useEffect(() => {
    document.title = `${title} · rbee`;
  }, [title]);
  return html`
    <header class="page-head">
      <div>
        <h1 id="page-title" tabindex="-1">${title}</h1>
        ${lead && html`<p class="lead">${lead}</p>`}
      </div>
      ${actions && html`<div class="actions">${actions}</div>`}
    </header>
    ${children}
  `;
}

/** A part of a page with a heading. */
export const Section = ({ title, actions, children }) => html`
  <section class="section">
    <div class="section-head">
      <h2>${title}</h2>
      ${actions && html`<div class="actions">${actions}</div>`}
    </div>
    ${children}
  </section>
`;

export const Card = ({ class: name = '', children, ...rest }) => html`<div class="card ${name}" ...${rest}>${children}</div>`;

/** A label with its control, a hint below it. The control's id is `id`. */
export const Field = ({ id, label, hint, children }) => html`
  <div class="field">
    <label for=${id}>${label}</label>
    ${children}
    ${hint && html`<p class="hint">${hint}</p>`}
  </div>
`;

/** A choice: `options` is `[{value, label}]` or texts. */
export const Select = ({ options, value, onChange, ...rest }) => html`
  <select value=${value} onChange=${(event) => onChange(event.target.value)} ...${rest}>
    ${options.map((option) => {
      const { value: of, label } = typeof option === 'string' ? { value: option, label: option } : option;
      return html`<option key=${of} value=${of} selected=${of === value}>${label}</option>`;
    })}
  </select>
`;

/** A field that filters what is shown. */
export const SearchField = ({ value, onInput, label }) => html`
  <span class="search">
    <${Icon} name="search" />
    <input
      type="search"
      aria-label=${label}
      placeholder=${label}
      value=${value}
      onInput=${(event) => onInput(event.target.value)}
    />
  </span>
`;

// ---- tables -----------------------------------------------------------------------------------------------------------

const Row = memo(({ row, columns }) => html`
  <tr>
    ${columns.map(
      (column) => html`<td class=${column.align === 'end' ? 'num end' : ''} data-label=${column.label}>
        ${column.cell ? column.cell(row) : column.value(row)}
      </td>`,
    )}
  </tr>
`);

function compared(left, right) {
  if (typeof left === 'number' && typeof right === 'number') return left - right;
  return String(left ?? '').localeCompare(String(right ?? ''), 'en', { numeric: true });
}

/**
 * Rows in fixed columns; on a phone each row is a card. `columns` is a constant `[{id, label, width, align: 'end'?,
 * value(row), cell(row)?}]`: `value` is what is shown and sorted by, `cell` draws it; without `value` it is not sorted.
 * `rows` are replaced when they change, never edited: an unchanged row is not drawn again.
 */
export function Table({ caption, columns, rows, rowKey, sortBy = null, descending = false, empty = null, limit = 250 }) {
  const [order, setOrder] = useState({ id: sortBy, descending });
  const [isAll, showAll] = useState(false);
  const members = rows.map(rowKey).join('\n');
  // Live figures must not make rows jump: they keep their places until another order is asked for, or a row comes or goes.
  const places = useMemo(() => {
    const by = columns.find((column) => column.id === order.id)?.value;
    if (!by) return null;
    const sign = order.descending ? -1 : 1;
    const ranked = [...rows].sort((left, right) => sign * compared(by(left), by(right)) || compared(rowKey(left), rowKey(right)));
    return new Map(ranked.map((row, place) => [rowKey(row), place]));
  }, [columns, order, members]);
  const sorted = places ? [...rows].sort((left, right) => places.get(rowKey(left)) - places.get(rowKey(right))) : rows;
  if (rows.length === 0 && empty) return empty;
  const shown = isAll ? sorted : sorted.slice(0, limit);
  const sort = (id) => setOrder((now) => ({ id, descending: now.id === id ? !now.descending : false }));
  return html`
    <div class="table-scroll" role="region" aria-label=${caption} tabindex="0">
      <table>
        <caption class="visually-hidden">${caption}</caption>
        <colgroup>${columns.map((column) => html`<col style=${{ width: column.width ?? 'auto' }} />`)}</colgroup>
        <thead>
          <tr>
            ${columns.map((column) => html`<${Heading} key=${column.id} column=${column} order=${order} sort=${sort} />`)}
          </tr>
        </thead>
        <tbody>
          ${shown.map((row) => html`<${Row} key=${rowKey(row)} row=${row} columns=${columns} />`)}
        </tbody>
      </table>
    </div>
    ${sorted.length > shown.length &&
    html`<p><button type="button" onClick=${() => showAll(true)}>Show all ${sorted.length} rows</button></p>`}
  `;
}

function Heading({ column, order, sort }) {
  const name = column.align === 'end' ? 'end' : '';
  if (!column.value) return html`<th scope="col" class=${name}><span class=${column.label ? '' : 'visually-hidden'}>${column.label || 'Actions'}</span></th>`;
  const isBy = order.id === column.id;
  const direction = order.descending ? 'descending' : 'ascending';
  return html`
    <th scope="col" class=${name} aria-sort=${isBy ? direction : undefined}>
      <button type="button" class="sort" onClick=${() => sort(column.id)}>
        ${column.label}<span class="sort-mark">${isBy && html`<${Icon} name=${order.descending ? 'down' : 'up'} size="12" />`}</span>
      </button>
    </th>
  `;
}

// ---- dialogs and toasts -----------------------------------------------------------------------------------------------

/** A modal dialog; `onClose` also for Escape. The children are its form. */
export function Dialog({ title, onClose, children }) {
  const element = useRef(null);
  // Before the browser goes on, and before the element goes: closing it gives the focus back to where it was.
  useLayoutEffect(() => {
    const dialog = element.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  const cancelled = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`<dialog ref=${element} aria-label=${title} onCancel=${cancelled}><h2>${title}</h2>${children}</dialog>`;
}

/** What lies above the page: `asked`, the question before something that stops or deletes, and the toasts. */
const overlay = store({ asked: null, toasts: [] });
const setAsked = (asked) => overlay.set({ ...overlay.get(), asked });
const setToasts = (edit) => overlay.set({ ...overlay.get(), toasts: edit(overlay.get().toasts) });
let nextToast = 0;

/** Asks before something that stops or deletes: `{title, text, action}`; answers with whether to go on. */
export function confirm({ title, text, action }) {
  overlay.get().asked?.settle(false);
  return new Promise((resolve) => {
    const settle = (answer) => {
      setAsked(null);
      resolve(answer);
    };
    setAsked({ title, text, action, settle });
  });
}

/** Tells that something was done, or failed, in a tone. It goes by itself; a failure stays longer. */
export function toast(text, tone = 'good') {
  nextToast += 1;
  const id = nextToast;
  setToasts((toasts) => [...toasts.slice(-3), { id, text, tone }]);
  setTimeout(() => dropToast(id), tone === 'bad' ? 12_000 : 5_000);
}

const dropToast = (id) => setToasts((toasts) => toasts.filter((it) => it.id !== id));

/** Does something and tells of it: `done` is the text of success; a failure is told in the daemon's words. */
export async function attempt(work, done) {
  try {
    const result = await work();
    if (done) toast(done);
    return result;
  } catch (error) {
    if (error.name !== 'AbortError') toast(error.message, 'bad');
    return undefined;
  }
}

/** Where questions and toasts are drawn; the shell has it once. */
export function Overlay() {
  const { asked, toasts } = useStore(overlay);
  return html`
    ${asked &&
    html`<${Dialog} key=${asked.title} title=${asked.title} onClose=${() => asked.settle(false)}>
      <p>${asked.text}</p>
      <div class="dialog-actions">
        <button type="button" onClick=${() => asked.settle(false)}>Cancel</button>
        <button type="button" class="danger" onClick=${() => asked.settle(true)}>${asked.action}</button>
      </div>
    <//>`}
    <div class="toasts" role="status" aria-live="polite">
      ${toasts.map(
        (it) => html`<div key=${it.id} class="toast tone-${it.tone}">
          <${Icon} name=${it.tone} /><span>${it.text}</span>
          <button type="button" class="icon-button" aria-label="Dismiss" onClick=${() => dropToast(it.id)}>
            <${Icon} name="close" size="14" />
          </button>
        </div>`,
      )}
    </div>
  `;
}
