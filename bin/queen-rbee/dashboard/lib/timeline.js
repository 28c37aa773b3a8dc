// What changed in the last hour, kept up to date.

import { call } from './api.js';
import { onFleetEvent } from './fleet.js';
import { useEffect, useState } from './ui.js';

const PATH = '/v1/timeline';
const KEPT = 2_000;
/** Changes come in bunches; what they led to is asked for once. */
const SETTLE_MS = 300;

/** Newest first, each once. */
function merged(...lists) {
  const byId = new Map(lists.flat().map((entry) => [entry.id, entry]));
  return [...byId.values()].sort((left, right) => right.id - left.id).slice(0, KEPT);
}

/** `{entries, keptSince, error}`: entries newest first, null until they are known. */
export function useTimeline() {
  const [told, tell] = useState({ entries: null, keptSince: null, error: null });
  useEffect(() => {
    const abort = new AbortController();
    // A queen that restarted numbers anew: what was asked for in an older round is forgotten.
    let [timer, round, since] = [null, 0, []];
    const ask = async (path) => {
      const asked = round;
      try {
        const answer = await call(path, { signal: abort.signal });
        return asked === round ? answer : null;
      } catch (error) {
        if (!abort.signal.aborted) tell((before) => ({ ...before, error }));
        return null;
      }
    };
    const add = (entries) => {
      since = merged(entries, since);
      tell((before) => ({ ...before, entries: before.entries && merged(entries, before.entries), error: null }));
    };
    const askAll = async () => {
      round += 1;
      since = [];
      const answer = await ask(PATH);
      if (!answer) return;
      // What was told meanwhile may be newer than the answer.
      since = merged(since, answer.entries);
      tell({ entries: since, keptSince: answer.kept_since, error: null });
    };
    const askMore = async () => {
      timer = null;
      const answer = await ask(`${PATH}?after=${since[0]?.id ?? 0}`);
      if (answer) add(answer.entries);
    };
    askAll();
    const stop = onFleetEvent((event, data) => {
      if (event === 'timeline') add([data]);
      else if (event === 'snapshot') askAll();
      else timer ??= setTimeout(askMore, SETTLE_MS);
    });
    return () => {
      stop();
      clearTimeout(timer);
      abort.abort();
    };
  }, []);
  return told;
}

/** Icons by what an entry is about. */
export const KIND_ICONS = { worker: 'play', hive: 'fleet', model: 'models', queen: 'info' };
