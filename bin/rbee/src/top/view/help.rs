//! The keys, over everything else.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout};
use ratatui::style::Color;
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

use crate::top::bar::Palette;

const KEYS: [(&str, &str); 8] = [
    ("q, Esc, Ctrl-C", "ends"),
    ("arrows, j k", "scroll"),
    ("PgUp PgDn, space", "scroll a page"),
    ("Home End, g G", "to the first, to the last"),
    ("Tab", "the other list"),
    ("s", "sorts the workers: model, host, busy, tok/s, memory"),
    ("?", "shows and hides this"),
    ("", "BUSY 1/4 +2: one of four slots taken, two wait"),
];
/// Columns of the keys' names.
const NAMES: usize = 18;

pub(super) fn draw(frame: &mut Frame<'_>, palette: Palette) {
    let lines: Vec<String> = KEYS
        .iter()
        .map(|(keys, what)| format!(" {keys:<NAMES$}{what} "))
        .collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) + 2;
    let height = lines.len() + 2;
    let [size_x, size_y] = [width, height].map(|size| Constraint::Length(u16::try_from(size).unwrap_or(u16::MAX)));
    let [area] = Layout::horizontal([size_x]).flex(Flex::Center).areas(frame.area());
    let [area] = Layout::vertical([size_y]).flex(Flex::Center).areas(area);
    let block = Block::bordered()
        .title(" keys ")
        .border_style(palette.style(Color::Cyan));
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
