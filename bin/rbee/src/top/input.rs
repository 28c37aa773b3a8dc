//! What the user looks at, and the keys that change it.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rows::WorkerRow;

/// One of the two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Section {
    /// Hosts and their devices.
    Hosts,
    /// Workers.
    #[default]
    Workers,
}

/// Order of the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    /// By model, then by id.
    #[default]
    Model,
    /// By host, then by device.
    Host,
    /// The busiest first.
    Busy,
    /// The fastest first.
    Speed,
    /// Those that hold most first.
    Memory,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Model => Self::Host,
            Self::Host => Self::Busy,
            Self::Busy => Self::Speed,
            Self::Speed => Self::Memory,
            Self::Memory => Self::Model,
        }
    }

    /// Its name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Host => "host",
            Self::Busy => "busy",
            Self::Speed => "tok/s",
            Self::Memory => "memory",
        }
    }

    /// Brings rows that are in the order of their ids into this one.
    pub(super) fn apply(self, rows: &mut [WorkerRow]) {
        match self {
            Self::Model => rows.sort_by(|a, b| a.model.cmp(&b.model)),
            Self::Host => rows.sort_by(|a, b| (&a.host, &a.device).cmp(&(&b.host, &b.device))),
            Self::Busy => rows.sort_by_key(|row| std::cmp::Reverse(row.busy + row.waiting)),
            Self::Speed => rows.sort_by(|a, b| b.tokens_per_second.total_cmp(&a.tokens_per_second)),
            Self::Memory => rows.sort_by_key(|row| std::cmp::Reverse(row.ram_mb.max(row.vram_mb))),
        }
    }
}

/// What a list has, and how much of it there is room for, in lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Extent {
    /// Lines that there are.
    pub(super) lines: usize,
    /// Lines that are seen.
    pub(super) room: usize,
}

impl Extent {
    /// The furthest that it can be scrolled.
    pub(super) fn last(self) -> usize {
        self.lines.saturating_sub(self.room)
    }
}

/// The two lists' extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Extents {
    /// Hosts and their devices.
    pub(super) hosts: Extent,
    /// Workers.
    pub(super) workers: Extent,
}

/// What the user looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ui {
    /// The list that the arrows scroll.
    pub(super) section: Section,
    /// Order of the workers.
    pub(super) sort: Sort,
    /// Whether the keys are shown.
    pub(super) help: bool,
    /// First line of the hosts that is seen.
    pub(super) hosts_at: usize,
    /// First line of the workers that is seen.
    pub(super) workers_at: usize,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// To look on.
    Stay,
    /// To end.
    Leave,
}

impl Ui {
    /// Does what a key says.
    pub(super) fn press(&mut self, key: KeyEvent, extents: Extents) -> Wish {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        let page = match self.section {
            Section::Hosts => extents.hosts.room,
            Section::Workers => extents.workers.room,
        };
        let page = isize::try_from(page.max(1)).unwrap_or(isize::MAX);
        match key.code {
            KeyCode::Char('c' | 'd') if is_control => return Wish::Leave,
            KeyCode::Esc | KeyCode::Char('q') if self.help => self.help = false,
            KeyCode::Esc | KeyCode::Char('q') => return Wish::Leave,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Tab | KeyCode::BackTab => {
                self.section = match self.section {
                    Section::Hosts => Section::Workers,
                    Section::Workers => Section::Hosts,
                }
            }
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Up | KeyCode::Char('k') => self.scroll(-1, extents),
            KeyCode::Down | KeyCode::Char('j') => self.scroll(1, extents),
            KeyCode::PageUp => self.scroll(-page, extents),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll(page, extents),
            KeyCode::Home | KeyCode::Char('g') => self.scroll(isize::MIN, extents),
            KeyCode::End | KeyCode::Char('G') => self.scroll(isize::MAX, extents),
            _ => {}
        }
        Wish::Stay
    }

    fn scroll(&mut self, lines: isize, extents: Extents) {
        let (at, extent) = match self.section {
            Section::Hosts => (&mut self.hosts_at, extents.hosts),
            Section::Workers => (&mut self.workers_at, extents.workers),
        };
        *at = (*at).min(extent.last()).saturating_add_signed(lines).min(extent.last());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENTS: Extents = Extents {
        hosts: Extent { lines: 3, room: 3 },
        workers: Extent { lines: 10, room: 4 },
    };

    fn pressed(ui: &mut Ui, keys: &[KeyCode]) -> Wish {
        let mut wish = Wish::Stay;
        for &key in keys {
            wish = ui.press(key.into(), EXTENTS);
        }
        wish
    }

    #[test]
    fn a_list_scrolls_to_its_ends_and_no_further() {
        let mut ui = Ui::default();
        pressed(&mut ui, &[KeyCode::Down, KeyCode::Char('j'), KeyCode::Up]);
        assert_eq!(ui.workers_at, 1);
        pressed(&mut ui, &[KeyCode::PageDown, KeyCode::PageDown]);
        assert_eq!(ui.workers_at, 6);
        pressed(&mut ui, &[KeyCode::Home, KeyCode::Up]);
        assert_eq!(ui.workers_at, 0);
        pressed(&mut ui, &[KeyCode::End]);
        assert_eq!(ui.workers_at, 6);
        pressed(&mut ui, &[KeyCode::Tab, KeyCode::Down]);
        assert_eq!(ui.hosts_at, 0, "all of them are seen");
    }

    #[test]
    fn q_leaves_and_before_that_closes_the_help() {
        let mut ui = Ui::default();
        assert_eq!(pressed(&mut ui, &[KeyCode::Char('?'), KeyCode::Char('q')]), Wish::Stay);
        assert!(!ui.help);
        assert_eq!(pressed(&mut ui, &[KeyCode::Char('q')]), Wish::Leave);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(ui.press(interrupt, EXTENTS), Wish::Leave);
    }

    #[test]
    fn s_goes_through_all_orders_and_back_to_the_first() {
        let mut ui = Ui::default();
        let mut words = vec![];
        for _ in 0..6 {
            words.push(ui.sort.word());
            pressed(&mut ui, &[KeyCode::Char('s')]);
        }
        assert_eq!(words, ["model", "host", "busy", "tok/s", "memory", "model"]);
    }
}
