// Jobs of the queen: work that takes longer than a request, told of as it goes.

import { call, openStream } from './api.js';

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

/** Starts a job and waits for its end; answers with its result. Throws with the reason if it fails. */
export async function runJob(operation, told, signal) {
  const last = await followJob(await startJob(operation), told, signal);
  if (last.state === 'succeeded') return last.result ?? null;
  throw new Error(last.error?.message ?? last.message ?? `the job was ${last.state}`);
}
