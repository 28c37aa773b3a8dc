// Jobs of the queen: work that takes longer than a request, told of as it goes.

import { call, openStream } from './api.js';

const ASK_MS = 1_000;

/** Starts a job: `{operation: 'worker_stop', worker_id, ...}`; answers with its id. */
export const startJob = async (operation) => (await call('/v1/jobs', { method: 'POST', body: operation })).job_id;

/** Asks a job to end. */
export const cancelJob = (id) => call(`/v1/jobs/${encodeURIComponent(id)}`, { method: 'DELETE' });

/** Whether nothing follows this event. */
export const isFinal = (event) => event.state !== 'running';

/** Tells every event of a job, from its first; answers with the last one, whose state is final. */
export async function followJob(id, told, signal) {
  const { events } = await openStream(`/v1/jobs/${encodeURIComponent(id)}/stream`, { signal });
  let last = null;
  for await (const { data } of events) {
    last = JSON.parse(data);
    told?.(last);
    if (isFinal(last)) break;
  }
  if (!last || !isFinal(last)) throw new Error('the queen broke off before the job was over');
  return last;
}

/** Waits for the end of a job; answers with whether it was carried through, not cancelled. Throws with the reason if it failed. */
export async function jobDone(id) {
  for (;;) {
    // Asked for, not followed: jobs may be many and long, and a browser has six connections to one host.
    const { state, last_event: last } = await call(`/v1/jobs/${encodeURIComponent(id)}`);
    if (state === 'succeeded' || state === 'cancelled') return state === 'succeeded';
    if (state === 'failed') throw new Error(last?.error?.message ?? 'the job failed');
    await new Promise((resolve) => setTimeout(resolve, ASK_MS));
  }
}
