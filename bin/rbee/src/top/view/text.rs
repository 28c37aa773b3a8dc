//! Texts of an exact width.

use ratatui::text::Span;

use crate::render;

/// The text in exactly so many columns: cut with an ellipsis, or filled up. What a terminal would obey is taken out.
pub(super) fn fit(text: &str, width: usize) -> String {
    let mut text = render::clean(text);
    if columns(&text) > width {
        while columns(&text) + 1 > width && text.pop().is_some() {}
        if width > 0 {
            text.push('…');
        }
    }
    let fill = width.saturating_sub(columns(&text));
    text.push_str(&" ".repeat(fill));
    text
}

/// The same, at the right end of its room.
pub(super) fn fit_right(text: &str, width: usize) -> String {
    let shown = fit(text, width);
    let trimmed = shown.trim_end();
    let fill = width - columns(trimmed);
    format!("{}{trimmed}", " ".repeat(fill))
}

fn columns(text: &str) -> usize {
    match text.is_ascii() {
        true => text.len(),
        false => Span::raw(text).width(),
    }
}

/// Some of many, for example `2/3`.
pub(super) fn counted(some: usize, all: usize) -> String {
    format!("{some}/{all}")
}

/// Megabytes as gigabytes, in at most four characters up to 9 TB.
pub(super) fn gb(mb: u64) -> String {
    let gb = mb as f64 / 1e3;
    match mb {
        0..100_000 => format!("{gb:.1}"),
        _ => format!("{gb:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_exactly_the_width_of_its_room() {
        assert_eq!(fit("worker-1", 10), "worker-1  ");
        assert_eq!(fit("worker-12345678", 10), "worker-12…");
        assert_eq!(fit("模型模型", 6), "模型… ");
        assert_eq!(fit("x", 0), "");
        assert_eq!(fit_right("7 %", 5), "  7 %");
        assert_eq!(fit_right("1234567", 5), "1234…");
        assert_eq!(fit("a\u{1b}[31m", 5), "a [3…");
    }

    #[test]
    fn memory_is_told_in_few_digits() {
        assert_eq!(
            [gb(0), gb(1_540), gb(99_949), gb(512_000)],
            ["0.0", "1.5", "99.9", "512"]
        );
    }
}
