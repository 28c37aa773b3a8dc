// The fleet as this page knows it: a snapshot, then every change, beats and telemetry as the queen tells them.
//
// The state is replaced, never changed, at most once per frame; a member whose object is the same did not change. After a
// break the stream goes on where it was; a queen that restarted, or that no longer has the place, sends a new snapshot.

import { ApiError, question, secretsTold, sse } from './api.js';
import { store, useStore } from './store.js';

const PATH = '/v1/heartbeats/stream';
/** The queen beats every 2.5 s: a stream that is silent for longer than this is dead. */
const SILENCE_MS = 8_000;
const RETRY_MS = [250, 500, 1_000, 2_000, 4_000];
/** A browser has six connections to one host: a tab that nobody sees gives its own back. */
const HIDDEN_MS = 30_000;

/**
 * `connection`: `{state: 'connecting'|'live'|'reconnecting'|'locked'|'paused', since (ms of Date.now()), reason}`.
 * `isLoaded`: whether there was a snapshot. `hives`, `workers`: Maps by id of the views of `GET /v1/fleet`, each with `at`,
 * the moment (ms of Date.now()) for which its ages hold. `inflight`, `waiting`: requests.
 */
const shown = store({
  connection: { state: 'connecting', since: Date.now(), reason: null },
  isLoaded: false,
  queen: null,
  hives: new Map(),
  workers: new Map(),
  gone: [],
  inflight: 0,
  waiting: 0,
});
let draft = null;
const listeners = new Set();

/** The state now. */
export const fleet = () => draft ?? shown.get();

/** The state, kept up to date while the component is shown. */
export const useFleet = () => useStore(shown);

/** Calls `listener(event, data)` for each change and for `timeline`; beats and telemetry are not told. Answers with how to stop. */
export function onFleetEvent(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** A field of a member that is an age in milliseconds, as it is now. */
export const ageMs = (member, field) => member[field] + Math.max(0, Date.now() - member.at);

/** The workers of a hive. */
export const workersOf = (hiveId, from = fleet()) => [...from.workers.values()].filter((worker) => worker.hive_id === hiveId);

function change(edit) {
  if (!draft) {
    const now = shown.get();
    draft = { ...now, hives: new Map(now.hives), workers: new Map(now.workers) };
    // A hidden tab has no frames, and need not have any.
    requestAnimationFrame(publish);
  }
  edit(draft);
}

function publish() {
  const next = draft;
  draft = null;
  shown.set(next);
}

function connection(name, reason = null) {
  const before = fleet().connection;
  if (before.state === name && before.reason === reason) return;
  const since = before.state === name ? before.since : Date.now();
  change((next) => {
    next.connection = { state: name, since, reason };
  });
}

const stamped = (member) => ({ ...member, at: Date.now() });
const byId = (members) => new Map(members.map((member) => [member.id, stamped(member)]));

function memberTold(kind, event, { change: what, reason, [kind]: member }) {
  change((next) => {
    const members = kind === 'worker' ? next.workers : next.hives;
    if (what === 'left') {
      members.delete(member.id);
      next.gone = [stamped({ kind, id: member.id, reason, ms_ago: 0 }), ...next.gone].slice(0, 100);
    } else {
      members.set(member.id, stamped(member));
    }
  });
  if (what !== 'beat') listeners.forEach((listener) => listener(event, { change: what, reason, [kind]: member }));
}

function telemetryTold({ hive_id: id, monitor, workers }) {
  change((next) => {
    const hive = next.hives.get(id);
    if (hive) next.hives.set(id, { ...hive, monitor, workers });
    for (const process of workers) {
      const worker = next.workers.get(process.worker_id);
      if (worker) next.workers.set(worker.id, { ...worker, process });
    }
  });
}

const handlers = {
  snapshot(view) {
    change((next) => {
      Object.assign(next, { isLoaded: true, queen: view.queen, gone: view.gone.map(stamped) });
      next.hives = byId(view.hives);
      next.workers = byId(view.workers);
    });
    listeners.forEach((listener) => listener('snapshot', view));
  },
  queen(beat) {
    change((next) => {
      next.queen = beat.queen;
      next.inflight = beat.inflight_requests;
      next.waiting = beat.waiting_requests;
    });
  },
  worker: (data) => memberTold('worker', 'worker', data),
  hive: (data) => memberTold('hive', 'hive', data),
  telemetry: telemetryTold,
  timeline(entry) {
    // What an operator said of a host is told at once; the host's own beat has it only later.
    const hive = entry.kind === 'hive' && fleet().hives.get(entry.subject);
    if (hive && (entry.change === 'drained' || entry.change === 'undrained')) {
      change((next) => next.hives.set(hive.id, { ...hive, drained: entry.change === 'drained' }));
    }
    listeners.forEach((listener) => listener('timeline', entry));
  },
};

let lastId = null;
let abort = null;
let wake = null;

/** Reads the stream once, until it ends, fails, or is silent for too long. */
async function follow() {
  abort = new AbortController();
  let watchdog = null;
  const heard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
  };
  const noted = (handler) => (data, id) => {
    heard();
    handler(data);
    if (id) lastId = id;
    connection('live');
  };
  const told = Object.fromEntries(Object.entries(handlers).map(([event, handler]) => [event, noted(handler)]));
  const headers = lastId ? { 'Last-Event-ID': lastId } : {};
  try {
    await sse(PATH, { ...told, open: heard }, { signal: abort.signal, headers });
  } finally {
    clearTimeout(watchdog);
    abort = null;
  }
}

const woken = (ms) =>
  new Promise((resolve) => {
    const timer = ms === null ? null : setTimeout(resolve, ms);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });

/** Follows the fleet for as long as the page is open. */
export async function followFleet() {
  for (let failures = 0; ; failures += 1) {
    const begun = Date.now();
    let refusal = null;
    try {
      await follow();
    } catch (error) {
      refusal = error;
    }
    if (refusal instanceof ApiError && refusal.status === 401) {
      connection('locked', refusal.message);
      await woken(null);
      continue;
    }
    if (document.hidden && fleet().connection.state === 'paused') {
      await woken(null);
      failures = 0;
    }
    if (Date.now() - begun > SILENCE_MS) failures = 0;
    connection(fleet().isLoaded ? 'reconnecting' : 'connecting', refusal instanceof ApiError ? refusal.message : null);
    const pause = refusal?.retryAfterS ? refusal.retryAfterS * 1000 : RETRY_MS[Math.min(failures, RETRY_MS.length - 1)];
    await woken(pause * (0.75 + Math.random() / 2));
  }
}

/** Tries again now, if it is not connected. */
export const reconnect = () => wake?.();

let hiding = null;
document.addEventListener('visibilitychange', () => {
  clearTimeout(hiding);
  if (!document.hidden) {
    reconnect();
    return;
  }
  hiding = setTimeout(() => {
    connection('paused');
    abort?.abort();
  }, HIDDEN_MS);
});
addEventListener('online', reconnect);
secretsTold.watch(reconnect);
question.watch((asked) => {
  if (asked?.name === 'token' && fleet().connection.state !== 'live') connection('locked');
});
