// A conversation with any model, and the receipt of each answer.

import { openStream } from '../lib/api.js';
import { useFleet } from '../lib/fleet.js';
import { NOTHING, count, duration, number, quantity } from '../lib/format.js';
import { go } from '../lib/route.js';
import { store, useStore } from '../lib/store.js';
import { Empty, Failure, Field, Icon, Notice, Page, Select, html, useEffect, useMemo, useRef, useResource } from '../lib/ui.js';
import { MODEL_STATES } from './model_state.js';

/** The conversation, kept while the reader looks at other pages. `turns` are replaced as they grow. */
const talk = { turns: [], settings: { system: '', temperature: '', maxTokens: '' }, abort: null, next: 0 };
/** How often what is said was drawn anew. */
const drawn = store(0);
const draw = () => drawn.set(drawn.get() + 1);
let frame = null;

/** Shows what changed, once per frame; a tab that nobody sees has no frames, and need not have any. */
function changed(id, edit) {
  talk.turns = talk.turns.map((turn) => (turn.id === id ? { ...turn, ...edit(turn) } : turn));
  frame ??= requestAnimationFrame(() => {
    frame = null;
    draw();
  });
}

function added(role, text, more) {
  talk.next += 1;
  talk.turns = [...talk.turns, { id: talk.next, role, text, ...more }];
  return talk.next;
}

const header = (headers, name) => headers.get(`x-rbee-${name}`);

/** The receipt as the head of the answer has it: a stream that had to wait long begins before it has a worker. */
const early = (headers) => ({
  request_id: headers.get('x-request-id'),
  worker: header(headers, 'worker'),
  hive: header(headers, 'hive'),
  queue_ms: Number(header(headers, 'queue-ms') ?? 0),
  attempts: Number(header(headers, 'attempts') ?? 1),
  migrations: Number(header(headers, 'migrations') ?? 0),
});

function body(model) {
  const { system, temperature, maxTokens } = talk.settings;
  const said = talk.turns.filter((turn) => turn.text && !turn.error).map(({ role, text }) => ({ role, content: text }));
  return {
    model,
    messages: [...(system.trim() ? [{ role: 'system', content: system.trim() }] : []), ...said],
    stream: true,
    stream_options: { include_usage: true },
    ...(temperature === '' ? {} : { temperature: Number(temperature) }),
    ...(maxTokens === '' ? {} : { max_tokens: Number(maxTokens) }),
  };
}

/** Reads an answer into the turn `id` to its end. */
async function read(id, model, signal) {
  const begun = performance.now();
  const payload = body(model);
  let [first, last, isWhole] = [null, null, false];
  const { response, events } = await openStream('/v1/chat/completions', { method: 'POST', body: payload, signal, comments: true });
  changed(id, () => ({ receipt: early(response.headers) }));
  for await (const { event, data } of events) {
    if (event === 'comment') {
      changed(id, () => ({ note: data }));
      continue;
    }
    if (data === '[DONE]') {
      isWhole = true;
      break;
    }
    const { error, choices, usage, rbee } = JSON.parse(data);
    if (error) throw new Error(error.message);
    const text = choices?.[0]?.delta?.content ?? '';
    if (text) {
      last = performance.now();
      first ??= last;
    }
    changed(id, (turn) => ({
      text: turn.text + text,
      note: text ? null : turn.note,
      finish: choices?.[0]?.finish_reason ?? turn.finish,
      receipt: { ...turn.receipt, ...rbee, tokens: usage?.completion_tokens ?? turn.receipt.tokens, prompt: usage?.prompt_tokens ?? turn.receipt.prompt, cached: usage?.prompt_tokens_details?.cached_tokens ?? turn.receipt.cached, ttftMs: first && first - begun, spanMs: first && last - first },
    }));
  }
  if (!isWhole) throw new Error('the answer broke off before its end');
}

async function send(model, text) {
  added('user', text);
  const id = added('assistant', '', { model, isOpen: true, receipt: {} });
  const abort = new AbortController();
  talk.abort = abort;
  draw();
  try {
    await read(id, model, abort.signal);
  } catch (error) {
    changed(id, () => (error.name === 'AbortError' ? { finish: 'stopped' } : { error: error.message }));
  }
  if (talk.abort === abort) talk.abort = null;
  changed(id, () => ({ isOpen: false, note: null }));
}

const FINISHES = { length: 'cut at the most tokens allowed', stopped: 'stopped by you', content_filter: 'filtered' };

function Receipt({ turn: { receipt, finish } }) {
  const speed = receipt.tokens > 1 && receipt.spanMs > 0 ? ((receipt.tokens - 1) / receipt.spanMs) * 1000 : null;
  const facts = [
    ['Worker', receipt.worker ?? NOTHING],
    ['Host', receipt.hive ?? 'none'],
    ['First token', duration(receipt.ttftMs ?? undefined)],
    ['Speed', quantity(speed, 'tok/s')],
    ['Answer', receipt.tokens === undefined ? NOTHING : count(receipt.tokens, 'token')],
    ['Prompt', receipt.prompt === undefined ? NOTHING : `${count(receipt.prompt, 'token')}, ${number(receipt.cached ?? 0)} known`],
    ['Queue', duration(receipt.queue_ms)],
    ['Attempts', number(receipt.attempts)],
    ['Migrations', number(receipt.migrations)],
    ['Request', receipt.request_id ?? NOTHING],
  ];
  return html`
    <dl class="receipt" aria-label="Receipt">
      ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd class="num">${value}</dd></div>`)}
      ${FINISHES[finish] && html`<div><dt>End</dt><dd>${FINISHES[finish]}</dd></div>`}
    </dl>
  `;
}

function Turn({ turn }) {
  const isMine = turn.role === 'user';
  return html`
    <article class=${`turn ${isMine ? 'turn-mine' : ''}`} aria-busy=${turn.isOpen ? 'true' : undefined}>
      <h2 class="turn-who">${isMine ? 'You' : turn.model}</h2>
      <div class="turn-text">${turn.text}${turn.isOpen && html`<span class="caret" aria-hidden="true"></span>`}</div>
      ${turn.isOpen && !turn.text && html`<p class="muted small">${turn.note ?? 'waiting for the first token'}</p>`}
      ${turn.error && html`<${Notice} tone="bad">${turn.error}<//>`}
      ${!isMine && !turn.isOpen && turn.receipt.attempts !== undefined && html`<${Receipt} turn=${turn} />`}
      ${turn.receipt?.attempts === undefined && turn.finish && html`<p class="muted small">${FINISHES[turn.finish]}</p>`}
    </article>
  `;
}

/** What shapes the answers. */
function Settings() {
  const set = (name) => (event) => {
    talk.settings = { ...talk.settings, [name]: event.target.value };
  };
  const { system, temperature, maxTokens } = talk.settings;
  return html`
    <details class="card">
      <summary>Settings</summary>
      <div class="stack">
        <${Field} id="chat-system" label="System prompt">
          <textarea id="chat-system" rows="2" defaultValue=${system} onInput=${set('system')}></textarea>
        <//>
        <div class="row">
          <${Field} id="chat-temperature" label="Temperature" hint="0 always takes the likeliest">
            <input id="chat-temperature" type="number" min="0" max="2" step="0.1" placeholder="the model’s" defaultValue=${temperature} onInput=${set('temperature')} />
          <//>
          <${Field} id="chat-tokens" label="Most tokens" hint="of an answer">
            <input id="chat-tokens" type="number" min="1" step="1" placeholder="what fits" defaultValue=${maxTokens} onInput=${set('maxTokens')} />
          <//>
        </div>
      </div>
    </details>
  `;
}

/** Where one writes. Enter sends, Shift+Enter begins a line. */
function Composer({ model }) {
  const field = useRef(null);
  const submit = (event) => {
    event.preventDefault();
    const text = field.current.value.trim();
    if (!text || !model || talk.abort) return;
    field.current.value = '';
    send(model, text);
  };
  const typed = (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event);
  };
  return html`
    <form class="composer" onSubmit=${submit}>
      <textarea ref=${field} rows="2" aria-label="Message" placeholder="Ask something; Enter sends it" onKeyDown=${typed}></textarea>
      ${talk.abort
        ? html`<button key="stop" type="button" onClick=${() => talk.abort?.abort()}><${Icon} name="stop" />Stop</button>`
        : html`<button key="send" type="submit" class="primary" disabled=${!model}><${Icon} name="send" />Send</button>`}
    </form>
  `;
}

/** Names of the models that chat, the ready ones first. A base model without a chat template is left out where that is known. */
function useChatModels() {
  const { hives } = useFleet();
  const listed = useResource('/v1/models', { everyMs: 5_000 });
  const options = useMemo(() => {
    const facts = [...hives.values()].flatMap((hive) => hive.capabilities?.models ?? []);
    const base = new Set(facts.filter((model) => model.facts?.chat === false).map((model) => model.id));
    const rank = (model) => MODEL_STATES[model.state]?.rank ?? 9;
    return (listed.data?.data ?? [])
      .filter((model) => !base.has(model.alias_of ?? model.id))
      .sort((left, right) => rank(left) - rank(right) || left.id.localeCompare(right.id))
      .map((model) => ({ value: model.id, label: `${model.id} · ${MODEL_STATES[model.state]?.word ?? model.state}` }));
  }, [listed.data, hives]);
  return { ...listed, options };
}

export default function Chat({ params }) {
  useStore(drawn);
  const { data, error, reload, options } = useChatModels();
  const end = useRef(null);
  const model = params.get('model') ?? talk.model ?? options[0]?.value ?? null;
  talk.model = model;
  const isAtEnd = useRef(true);
  const scrolled = ({ target }) => {
    isAtEnd.current = target.scrollHeight - target.scrollTop - target.clientHeight < 60;
  };
  useEffect(() => {
    const box = end.current;
    if (box && isAtEnd.current) box.scrollTop = box.scrollHeight;
  });
  const clear = () => {
    talk.abort?.abort();
    talk.turns = [];
    draw();
  };
  const choose = html`
    <${Select} aria-label="Model" class="model-choice" options=${options} value=${model} onChange=${(name) => go('chat', { model: name }, { replace: true })} />
    <button type="button" onClick=${clear} disabled=${talk.turns.length === 0}>New chat</button>
  `;
  // A queen that has just started knows no hive yet: a conversation is not hidden for that.
  if (data && options.length === 0 && talk.turns.length === 0) {
    return html`<${Page} title="Chat">
      <${Empty} icon="chat" title="No model to talk to" command=${`rbee join ${location.origin}`}>A hive on a machine brings models, and the memory for them.<//>
    <//>`;
  }
  return html`
    <${Page} title="Chat" lead="Try any model. One that does not run yet is loaded by the first question." actions=${choose}>
      ${error && html`<${Failure} error=${error} retry=${reload} />`}
      <div class="talk" role="log" aria-label="Conversation" tabindex="0" ref=${end} onScroll=${scrolled}>
        ${talk.turns.length === 0 && html`<p class="muted">Nothing is kept: this conversation ends with this tab.</p>`}
        ${talk.turns.map((turn) => html`<${Turn} key=${turn.id} turn=${turn} />`)}
      </div>
      <${Composer} model=${model} />
      <${Settings} />
    <//>
  `;
}
