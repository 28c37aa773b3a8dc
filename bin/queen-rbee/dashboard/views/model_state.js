// What a request for a model would find, as the pages say it.

import { Badge, html } from '../lib/ui.js';

/** By the wire's word: the word for people, its tone, its icon, and where it stands among the others. */
export const MODEL_STATES = {
  ready: { tone: 'good', word: 'ready', rank: 0 },
  busy: { tone: 'info', icon: 'busy', word: 'all busy', rank: 1 },
  loading: { tone: 'info', icon: 'busy', word: 'loading', rank: 2 },
  on_disk: { tone: 'muted', icon: 'models', word: 'on disk', rank: 3 },
  available: { tone: 'muted', icon: 'download', word: 'not fetched', rank: 4 },
};

export const ModelState = ({ state }) => {
  const { tone, word, icon = tone } = MODEL_STATES[state] ?? { tone: 'muted', word: state };
  return html`<${Badge} tone=${tone} icon=${icon}>${word}<//>`;
};
