// The shell: navigation, the state of the connection, the scheme, the secrets that are asked for, and the page.

import { render } from './vendor/preact.js';
import { answerQuestion, forgetSecrets, hasSecrets, question } from './lib/api.js';
import { followFleet, reconnect, useFleet } from './lib/fleet.js';
import { href, useRoute } from './lib/route.js';
import { useStore } from './lib/store.js';
import { Ago, Dialog, Failure, Field, Icon, Overlay, html, useEffect, useErrorBoundary, useRef, useState } from './lib/ui.js';

/** The pages in their order; a phone shows the first four, the rest below "More". */
const PAGES = [
  { id: 'fleet', label: 'Fleet', load: () => import('./views/fleet.js') },
  { id: 'models', label: 'Models', load: () => import('./views/models.js') },
  { id: 'chat', label: 'Chat', load: () => import('./views/chat.js') },
  { id: 'requests', label: 'Requests', load: () => import('./views/requests.js') },
  { id: 'placement', label: 'Placement', load: () => import('./views/placement.js') },
  { id: 'decisions', label: 'Decisions', load: () => import('./views/decisions.js') },
  { id: 'timeline', label: 'Timeline', load: () => import('./views/timeline.js') },
  { id: 'logs', label: 'Logs', load: () => import('./views/logs.js') },
];
const ON_A_PHONE = 4;

function Brand() {
  return html`
    <a class="brand" href=${href('fleet')}>
      <svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
        <path d="M16 2l12 7v14l-12 7-12-7V9z" fill="#f2b01e" />
        <path d="M8.5 13h15M8.5 19h15" stroke="#2a1e00" stroke-width="3.5" />
      </svg>
      <span>rbee</span>
    </a>
  `;
}

function NavLink({ page, here }) {
  return html`
    <a class="nav-link" href=${href(page.id)} aria-current=${here === page.id ? 'page' : undefined}>
      <${Icon} name=${page.id} size="18" /><span>${page.label}</span>
    </a>
  `;
}

function Nav({ here }) {
  const [isOpen, open] = useState(false);
  useEffect(() => open(false), [here]);
  const isBelow = PAGES.slice(ON_A_PHONE).some((page) => page.id === here);
  return html`
    <nav class=${`nav${isOpen ? ' is-open' : ''}`} aria-label="Pages">
      ${PAGES.map((page) => html`<${NavLink} key=${page.id} page=${page} here=${here} />`)}
      <button
        type="button"
        class=${`nav-link nav-more${isBelow ? ' is-here' : ''}`}
        aria-expanded=${isOpen ? 'true' : 'false'}
        onClick=${() => open(!isOpen)}
      >
        <${Icon} name="more" size="18" /><span>More</span>
      </button>
    </nav>
  `;
}

const CONNECTIONS = {
  live: { tone: 'good', text: 'Live' },
  connecting: { tone: 'info', icon: 'busy', text: 'Connecting' },
  reconnecting: { tone: 'warn', icon: 'busy', text: 'Reconnecting' },
  locked: { tone: 'bad', icon: 'key', text: 'Token needed' },
  paused: { tone: 'muted', icon: 'pause', text: 'Paused' },
};

/** Whether what is shown is what is. */
function Connection({ connection }) {
  const { tone, icon = tone, text } = CONNECTIONS[connection.state];
  return html`
    <span class="connection" role="status" title=${connection.reason}>
      <span class="badge tone-${tone}"><${Icon} name=${icon} size="13" />${text}</span>
    </span>
  `;
}

/** What stands above a page while what it shows may be old. */
function Staleness({ connection, queen }) {
  if (connection.state === 'locked') {
    return html`
      <div class="notice tone-bad">
        <${Icon} name="key" />
        <div>The queen wants the fleet's token: the one that she was started with (<code>RBEE_TOKEN</code>).</div>
        <button type="button" onClick=${reconnect}>Enter the token</button>
      </div>
    `;
  }
  if (connection.state === 'reconnecting') {
    return html`
      <div class="notice tone-warn">
        <${Icon} name="warn" />
        <div>
          The queen was last heard <${Ago} since=${connection.since} />: what is shown was true then. This page goes on trying.
          ${connection.reason && html`<span class="muted">(${connection.reason})</span>`}
        </div>
      </div>
    `;
  }
  if (!queen?.degraded_view) return null;
  return html`<div class="notice tone-warn"><${Icon} name="warn" /><div>${queen.degraded_reason}</div></div>`;
}

const THEMES = { auto: 'As the system', light: 'Light', dark: 'Dark' };

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? 'auto');
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(theme) + 1) % names.length];
  const choose = () => {
    document.documentElement.dataset.theme = next;
    localStorage.setItem('rbee.theme', next);
    setTheme(next);
  };
  const icon = { auto: 'auto', light: 'sun', dark: 'moon' }[theme];
  const label = `Colours: ${THEMES[theme]}. Change to: ${THEMES[next]}`;
  return html`
    <button type="button" class="icon-button" aria-label=${label} title=${label} onClick=${choose}>
      <${Icon} name=${icon} size="18" />
    </button>
  `;
}

const QUESTIONS = {
  token: {
    title: 'The queen asks for the fleet’s token',
    label: 'Token',
    hint: 'The secret that queen and hives share: --token, RBEE_TOKEN.',
  },
  key: {
    title: 'The queen asks for an API key',
    label: 'API key',
    hint: 'One of the keys that clients of the models present: --api-key, RBEE_API_KEYS.',
  },
};

/** Asks for a secret when a call was refused without it. */
function Secrets() {
  const asked = useStore(question);
  const form = useRef(null);
  if (!asked) return null;
  const { title, label, hint } = QUESTIONS[asked.name];
  const send = (event) => {
    event.preventDefault();
    const { secret, remember } = form.current.elements;
    answerQuestion(secret.value.trim(), { remember: remember.checked });
  };
  return html`
    <${Dialog} key=${asked.name} title=${title} onClose=${() => answerQuestion(null)}>
      <form ref=${form} onSubmit=${send}>
        ${asked.wrong && html`<p class="form-error" role="alert"><${Icon} name="bad" /> That one is not right.</p>`}
        <${Field} id="secret" label=${label} hint=${hint}>
          <input id="secret" name="secret" type="password" autocomplete="off" required autofocus />
        <//>
        <label class="check"><input type="checkbox" name="remember" /> Remember it in this browser</label>
        <div class="dialog-actions">
          <button type="button" onClick=${() => answerQuestion(null)}>Not now</button>
          <button type="submit" class="primary">Enter</button>
        </div>
      </form>
    <//>
  `;
}

const loaded = new Map();

/** The page's module, loaded when it is first shown: the default export is its component. */
function View({ page, params }) {
  const [told, tell] = useState({ id: null, error: null });
  const [fault, forgive] = useErrorBoundary();
  const isFirst = useRef(true);
  useEffect(() => {
    if (loaded.has(page.id)) return;
    page.load().then(
      (module) => {
        loaded.set(page.id, module.default);
        tell({ id: page.id, error: null });
      },
      (error) => tell({ id: page.id, error }),
    );
  }, [page]);
  useEffect(() => forgive, [page]);
  const Shown = loaded.get(page.id);
  useEffect(() => {
    if (!Shown) return;
    // A reader who came by a link starts at the new page's title; the first page is left as it is.
    if (!isFirst.current) document.getElementById('page-title')?.focus();
    isFirst.current = false;
    scrollTo(0, 0);
  }, [Shown]);
  if (fault) return html`<${Failure} error=${fault} retry=${forgive} />`;
  if (Shown) return html`<${Shown} key=${page.id} params=${params} />`;
  if (told.id === page.id && told.error) return html`<${Failure} error=${told.error} retry=${() => location.reload()} />`;
  return null;
}

/** The shell. */
function App() {
  const { page: here, params } = useRoute();
  const { connection, queen } = useFleet();
  const page = PAGES.find((it) => it.id === here) ?? PAGES[0];
  const forget = () => {
    forgetSecrets();
    location.reload();
  };
  const skip = (event) => {
    event.preventDefault();
    document.getElementById('main').focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>To the content</a>
    <header class="side">
      <${Brand} />
      <${Nav} here=${page.id} />
      <div class="side-foot">
        <${Connection} connection=${connection} />
        <span class="version">${queen ? `queen ${queen.version}` : ''}</span>
        <span class="side-tools">
          ${hasSecrets() &&
          html`<button type="button" class="icon-button" aria-label="Forget the token" title="Forget the token" onClick=${forget}>
            <${Icon} name="key" size="18" />
          </button>`}
          <${Theme} />
        </span>
      </div>
    </header>
    <main id="main" tabindex="-1">
      <${Staleness} connection=${connection} queen=${queen} />
      <${View} page=${page} params=${params} />
    </main>
    <${Secrets} />
    <${Overlay} />
  `;
}

followFleet();
render(html`<${App} />`, document.getElementById('app'));
