//! Bars and lines made of characters, which say the same with and without colours.

use ratatui::style::{Color, Style};
use ratatui::text::Span;

use super::rows::Memory;

/// What a workers' part of a bar is made of.
pub(super) const OURS: char = '█';
/// What the part of everybody else is made of.
pub(super) const OTHERS: char = '▒';
/// What is free.
pub(super) const FREE: char = '░';
/// Heights of a line of rates.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The colours, unless the user wants none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Palette {
    /// Whether there are any.
    pub(super) colour: bool,
}

impl Palette {
    /// Text in this colour.
    pub(super) fn style(self, colour: Color) -> Style {
        match self.colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    /// Part of a bar that workers hold.
    pub(super) fn ours(self) -> Style {
        self.style(Color::Cyan)
    }

    /// Part of a bar that others hold.
    pub(super) fn others(self) -> Style {
        self.style(Color::Yellow)
    }

    /// Part of a bar that is free.
    pub(super) fn free(self) -> Style {
        self.style(Color::DarkGray)
    }
}

/// A bar for a share of 0 to 100.
pub(super) fn share(palette: Palette, percent: f32, width: usize) -> Vec<Span<'static>> {
    let full = cells(f64::from(percent) / 100.0, width);
    vec![run(OURS, full, palette.ours()), run(FREE, width - full, palette.free())]
}

/// A bar of memory: ours, others', free. What is held at all is at least one cell wide.
pub(super) fn memory(palette: Palette, memory: Memory, width: usize) -> Vec<Span<'static>> {
    let part = |mb: u64| cells(mb as f64 / memory.total_mb.max(1) as f64, width);
    let used = part(memory.used_mb());
    let ours = part(memory.ours_mb).min(used);
    vec![
        run(OURS, ours, palette.ours()),
        run(OTHERS, used - ours, palette.others()),
        run(FREE, width - used, palette.free()),
    ]
}

fn cells(share: f64, width: usize) -> usize {
    let cells = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    match share > 0.0 {
        true => cells.max(1).min(width),
        false => 0,
    }
}

fn run(cell: char, count: usize, style: Style) -> Span<'static> {
    Span::styled(String::from(cell).repeat(count), style)
}

/// The newest rates as a line of this width, the newest at its right end; the highest one is as high as a line gets.
pub(super) fn sparkline(rates: impl Iterator<Item = f64>, width: usize) -> String {
    let rates: Vec<f64> = rates.collect();
    let most = rates.iter().copied().fold(1.0, f64::max);
    let level = |rate: &f64| match *rate > 0.0 {
        true => LEVELS[((rate / most * 7.0).round() as usize).min(7)],
        false => ' ',
    };
    let line: String = rates.iter().map(level).collect();
    format!("{line:>width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(spans: &[Span<'_>]) -> String {
        spans.iter().map(|span| span.content.as_ref()).collect()
    }

    const PLAIN: Palette = Palette { colour: false };

    #[test]
    fn a_bar_of_memory_shows_whose_it_is() {
        let shown = |ours_mb, others_mb| {
            let total_mb = 100;
            let part = Memory {
                ours_mb,
                others_mb,
                total_mb,
            };
            text(&memory(PLAIN, part, 10))
        };
        assert_eq!(shown(50, 20), "█████▒▒░░░");
        assert_eq!(shown(0, 0), "░░░░░░░░░░");
        assert_eq!(shown(100, 0), "██████████");
        assert_eq!(shown(1, 0), "█░░░░░░░░░", "what is held at all is seen");
    }

    #[test]
    fn a_share_beyond_its_bounds_fills_the_bar() {
        assert_eq!(text(&share(PLAIN, 250.0, 4)), "████");
        assert_eq!(text(&share(PLAIN, -1.0, 4)), "░░░░");
        assert_eq!(text(&share(PLAIN, 50.0, 4)), "██░░");
    }

    #[test]
    fn a_line_of_rates_ends_with_the_newest_and_is_blank_where_nothing_was_made() {
        assert_eq!(sparkline([0.0, 50.0, 100.0].into_iter(), 5), "   ▅█");
        assert_eq!(sparkline(std::iter::empty(), 3), "   ");
        assert_eq!(sparkline([0.1].into_iter(), 1), "▂", "a trickle is no flood");
    }
}
