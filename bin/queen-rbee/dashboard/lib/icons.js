// Line icons on a grid of 24, drawn for this page.

import { h } from '../vendor/preact.js';

const PATHS = {
  fleet: 'M4 4h16v6H4zM4 14h16v6H4zM8 7h.01M8 17h.01M12 7h5M12 17h5',
  models: 'M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9',
  requests: 'M3 12h4l3-8 4 16 3-8h4',
  placement: 'M12 21s7-6.1 7-11a7 7 0 0 0-14 0c0 4.9 7 11 7 11zM12 12.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5z',
  chat: 'M4 5h16v11H10l-5 4v-4H4zM8 9h8M8 12h5',
  decisions: 'M6 4v16M6 9h7a4 4 0 0 0 4-4M17 5l-2.5 2.5M17 5l2.5 2.5M6 20l-2-2.5M6 20l2-2.5',
  timeline: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 7v5l3.5 2',
  logs: 'M4 5h16M4 10h11M4 15h16M4 20h8',
  more: 'M5 12h.01M12 12h.01M19 12h.01',
  good: 'M5 12.5l4.5 4.5L19 7.5',
  info: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 11v5M12 8h.01',
  warn: 'M12 4L2.5 20h19zM12 10v4.5M12 17.5h.01',
  bad: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM9 9l6 6M15 9l-6 6',
  muted: 'M6 12h12',
  busy: 'M12 3a9 9 0 1 0 9 9',
  sun: 'M12 16.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM12 2v2M12 20v2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M2 12h2M20 12h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4',
  moon: 'M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z',
  auto: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 3v18M12 8h6.5M12 13h8.5M12 18h5',
  search: 'M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5L21 21',
  close: 'M6 6l12 12M18 6L6 18',
  up: 'M6 15l6-6 6 6',
  down: 'M6 9l6 6 6-6',
  play: 'M7 4.5v15l12-7.5z',
  stop: 'M6 6h12v12H6z',
  pause: 'M8 5v14M16 5v14',
  drain: 'M4 5h16l-6.5 8v6l-3 1.5V13z',
  trash: 'M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5',
  download: 'M12 4v11M7 11l5 5 5-5M4 20h16',
  key: 'M14.5 13a4.5 4.5 0 1 0-4.3-3L3 17v4h4v-2.5h2.5V16H12l1.2-1.2',
  send: 'M4 12L20 4l-5 16-3.5-6.5zM11.5 13.5L20 4',
  pin: 'M9 4h6l-1 6 4 4H6l4-4zM12 14v7',
};

/** An icon beside a word that says the same: hidden from screen readers. */
export const Icon = ({ name, size = 16 }) =>
  h(
    'svg',
    { class: `icon icon-${name}`, viewBox: '0 0 24 24', width: size, height: size, 'aria-hidden': 'true' },
    h('path', { d: PATHS[name] ?? PATHS.info }),
  );
