// Values that outlive the components that show them.

import { useLayoutEffect, useState } from '../vendor/hooks.js';

/** A value that can be watched. It is replaced, never changed. `watch(told)` answers with how to stop. */
export function store(value) {
  const watchers = new Set();
  return {
    get: () => value,
    set(next) {
      value = next;
      watchers.forEach((told) => told(value));
    },
    watch(told) {
      watchers.add(told);
      return () => watchers.delete(told);
    },
  };
}

/** The value of a store, or of anything with `get` and `watch`, kept up to date while the component is shown. */
export function useStore({ get, watch }) {
  const [shown, show] = useState(get);
  // Watched before the browser goes on: an effect waits for a frame, and would miss what is told until then.
  useLayoutEffect(() => watch(show), [watch]);
  return shown;
}
