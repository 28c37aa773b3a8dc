// Where the reader is: the hash of the address, `#/page?name=value`.

import { useStore } from './store.js';

/** The page and its parameters (URLSearchParams) that the address names now. */
export function route() {
  const [page, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  return { page: page || 'fleet', params: new URLSearchParams(query) };
}

/** The address of a page; parameters without a value are left out. */
export function href(page, params = {}) {
  const kept = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== '');
  const query = new URLSearchParams(kept).toString();
  return `#/${page}${query ? `?${query}` : ''}`;
}

/** Goes to a page. With `replace`, the way back does not lead here. */
export function go(page, params, { replace = false } = {}) {
  if (!replace) {
    location.hash = href(page, params);
    return;
  }
  history.replaceState(null, '', href(page, params));
  dispatchEvent(new HashChangeEvent('hashchange'));
}

const address = {
  get: route,
  watch(told) {
    const moved = () => told(route());
    addEventListener('hashchange', moved);
    return () => removeEventListener('hashchange', moved);
  },
};

/** The route, kept up to date. */
export const useRoute = () => useStore(address);
