// What changed in the last hour, kept up to date.

import { call } from './api.js';
import { onFleetEvent } from './fleet.js';
import { useEffect, useState } from './ui.js';

const PATH = '/v1/timeline';
const KEPT = 2_000;
/** Changes come in bunches; what they led to is asked for once. */
const SETTLE_MS = 300;

/** `{entries, keptSince, error}`: entries newest first, null until they are known. */
export function useTimeline() {
  const [told, tell] = useState({ entries: null, keptSince: null, error: null });
  useEffect(() => {
    const abort = new AbortController();
    let timer = null;
    let newest = null;
    const add = (entries) => {
      const fresh = entries.filter((entry) => newest === null || entry.id > newest);
      if (fresh.length === 0) return;
      newest = Math.max(...fresh.map((entry) => entry.id));
      tell((before) => ({ ...before, entries: [...fresh, ...(before.entries ?? [])].slice(0, KEPT), error: null }));
    };
    const ask = async (isAnew) => {
      timer = null;
      if (isAnew) newest = null;
      try {
        const after = newest === null ? '' : `?after=${newest}`;
        const { entries, kept_since: keptSince } = await call(`${PATH}${after}`, { signal: abort.signal });
        if (after) return add(entries);
        newest = entries[0]?.id ?? 0;
        return tell({ entries, keptSince, error: null });
      } catch (error) {
        if (!abort.signal.aborted) tell((before) => ({ ...before, error }));
        return undefined;
      }
    };
    ask(true);
    const stop = onFleetEvent((event, data) => {
      if (event === 'timeline') add([data]);
      else if (event === 'snapshot') ask(true);
      else timer ??= setTimeout(ask, SETTLE_MS);
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
