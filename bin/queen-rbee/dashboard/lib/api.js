// Talks to the queen that served this page: JSON calls, event streams, and the secrets that she asks for.
//
// Two secrets: the fleet's `token`, and an API `key` for the models. Whichever is missing is asked for when a call is
// refused with 401; the call waits for the answer and is sent again.

import { store } from './store.js';

/** A refusal by the queen, or that she was not reached (`status` 0). `message` is for people. */
export class ApiError extends Error {
  constructor(status, message, { type = null, code = null, param = null, retryAfterS = null } = {}) {
    super(message);
    this.name = 'ApiError';
    Object.assign(this, { status, type, code, param, retryAfterS });
  }
}

const MODEL_ROUTES = /^\/v1\/(models|chat\/completions|completions|embeddings|messages|responses)(\/|$|\?)/;
const SECRETS = ['token', 'key'];
const stored = (name) => `rbee.${name}`;

const secrets = Object.fromEntries(
  SECRETS.map((name) => [name, sessionStorage.getItem(stored(name)) ?? localStorage.getItem(stored(name))]),
);

/** A store: the question that a person has to answer, `{name: 'token'|'key', wrong: bool}`, or null. */
export const question = store(null);
/** A store: how many secrets were told to this page; what was refused may be asked for anew when it changes. */
export const secretsTold = store(0);

/** Takes a person's answer: the secret, or null for "not now". Kept for this tab, with `remember` for this browser. */
export function answerQuestion(secret, { remember = false } = {}) {
  const asked = question.get();
  if (!asked) return;
  if (secret) setSecret(asked.name, secret, remember);
  question.set(null);
  asked.resolve(Boolean(secret));
  if (secret) secretsTold.set(secretsTold.get() + 1);
}

/** Whether a secret is kept. */
export const hasSecrets = () => SECRETS.some((name) => secrets[name]);

/** Forgets the secrets, here and in this browser. */
export function forgetSecrets() {
  SECRETS.forEach((name) => setSecret(name, null));
}

function setSecret(name, secret, remember = false) {
  secrets[name] = secret;
  sessionStorage.removeItem(stored(name));
  localStorage.removeItem(stored(name));
  if (secret) (remember ? localStorage : sessionStorage).setItem(stored(name), secret);
}

/** Asks a person, unless that is being asked already; whether there is an answer. */
function ask(name, wrong) {
  if (question.get()) return question.get().answered;
  let resolve;
  const answered = new Promise((settle) => {
    resolve = settle;
  });
  question.set({ name, wrong, answered, resolve });
  return answered;
}

/** The address of a path of the queen, below wherever this page lies. */
const address = (path) => new URL(`.${path}`, document.baseURI);

/**
 * Sends a request; answers with the Response. `body` is sent as JSON. Throws ApiError for a refusal, and lets an
 * AbortError pass.
 */
export async function request(path, { method = 'GET', body, headers = {}, signal } = {}) {
  const name = MODEL_ROUTES.test(path) ? 'key' : 'token';
  for (;;) {
    // The token opens what a key opens.
    const secret = name === 'key' ? (secrets.key ?? secrets.token) : secrets.token;
    const sent = new Headers(headers);
    if (secret) sent.set('Authorization', `Bearer ${secret}`);
    if (body !== undefined) sent.set('Content-Type', 'application/json');
    let response;
    try {
      const payload = body === undefined ? undefined : JSON.stringify(body);
      response = await fetch(address(path), { method, headers: sent, body: payload, signal, cache: 'no-store' });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ApiError(0, 'the queen does not answer; is she running, and can this machine reach her?');
    }
    if (response.ok) return response;
    const refusal = await refused(response);
    if (response.status !== 401) throw refusal;
    // One question at a time: nobody's typing is taken away, and the token opens what a key opens.
    while (question.get() && question.get().name !== name) await question.get().answered;
    signal?.throwIfAborted();
    // Another call may have brought a newer secret meanwhile.
    const newest = name === 'key' ? (secrets.key ?? secrets.token) : secrets.token;
    if (newest === secret && !(await ask(name, Boolean(secret)))) throw refusal;
    signal?.throwIfAborted();
  }
}

async function refused(response) {
  const retryAfterS = Number(response.headers.get('Retry-After')) || null;
  const text = await response.text().catch(() => '');
  try {
    const { error } = JSON.parse(text);
    return new ApiError(response.status, error.message, { ...error, retryAfterS });
  } catch {
    return new ApiError(response.status, text.slice(0, 300) || `the queen answered ${response.status}`, { retryAfterS });
  }
}

/** Sends a request; answers with the JSON of the answer, null if it has none. */
export async function call(path, options) {
  const response = await request(path, options);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/**
 * Opens an event stream; answers with the Response and its events, each `{event, id, data}` with the data as text. With
 * `comments`, they are told as well, as events `comment`.
 */
export async function openStream(path, { comments = false, ...options } = {}) {
  const headers = { Accept: 'text/event-stream', ...options.headers };
  const response = await request(path, { ...options, headers });
  return { response, events: events(response.body, comments) };
}

async function* events(body, comments) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  const brokeOff = (error) => {
    throw error.name === 'AbortError' ? error : new ApiError(0, 'the connection to the queen broke off; ask again when she is back');
  };
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(brokeOff);
      if (done) return;
      rest += value;
      // A frame ends with an empty line; the last part is not complete yet.
      const frames = rest.split(/\r?\n\r?\n/);
      rest = frames.pop();
      for (const frame of frames) {
        const comment = comments && /^: *(.+)/m.exec(frame);
        if (comment) yield { event: 'comment', id: null, data: comment[1] };
        const event = parse(frame);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(frame) {
  const event = { event: 'message', id: null, data: null };
  for (const line of frame.split(/\r?\n/)) {
    const colon = line.indexOf(':');
    if (colon <= 0) continue;
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') event.data = event.data === null ? value : `${event.data}\n${value}`;
    else if (name === 'event' || name === 'id') event[name] = value;
  }
  return event.data === null ? null : event;
}

/**
 * Reads one event stream to its end: `handlers[event](data, id)` with the data parsed as JSON, `handlers.open()` when it
 * stands. Ends when the stream does; throws as `request`.
 */
export async function sse(path, handlers, { signal, headers } = {}) {
  const { events: incoming } = await openStream(path, { signal, headers });
  handlers.open?.();
  for await (const { event, id, data } of incoming) handlers[event]?.(JSON.parse(data), id);
}
