//! Figures and tables as people read them, and the two ways out: standard output for results, standard error for notes.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, LineStyle, Table, presets};
use serde::Serialize;

/// Spaces between two columns of a table.
const GAP: u16 = 2;
/// Least room, in columns, in which a text is wrapped.
const MIN_WRAP: u16 = 24;

/// Writes a result to standard output.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes one JSON document on one line to standard output.
pub(crate) fn json_line(value: &impl Serialize) -> io::Result<()> {
    print(&serde_json::to_string(value)?)
}

/// Tells something on standard error; that nobody may be reading there is no reason to fail.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Text of another machine without what a terminal would obey: control characters become spaces.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same for a text of several lines: line breaks and tabs stay.
pub(crate) fn clean_lines(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}

/// A size in decimal units, for example `98.4 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1_000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1_000.0;
    let mut unit = 0;
    // What would be shown as 1000.0 belongs to the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A span of time in its largest unit, for example `3 s`, `12 min`.
pub(crate) fn age(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => "now".to_owned(),
        1..120 => format!("{s} s"),
        120..7_200 => format!("{} min", s / 60),
        7_200..172_800 => format!("{} h", s / 3_600),
        _ => format!("{} d", s / 86_400),
    }
}

/// What a cell means, beyond its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing particular.
    Plain,
    /// As it should be.
    Good,
    /// On its way, or in doubt.
    Warn,
    /// Not working.
    Bad,
}

/// A cell of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    text: String,
    tone: Tone,
}

impl Text {
    /// A cell in this tone; control characters are taken out.
    pub(crate) fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self {
            text: clean(text.as_ref()),
            tone,
        }
    }

    /// What it says.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl<T: AsRef<str>> From<T> for Text {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// How a table is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// A line below the header, and a last column that wraps instead of leaving the terminal.
    Terminal {
        /// Columns of the terminal, where they are known.
        width: Option<u16>,
        /// Whether tones show as colours.
        colour: bool,
    },
    /// Columns aligned by spaces, one line a row, for pipes.
    Plain,
}

impl Look {
    /// What fits standard output. `NO_COLOR` is obeyed (no-color.org: set and not empty).
    pub(crate) fn detect() -> Self {
        match io::stdout().is_terminal() {
            true => Self::Terminal {
                width: Table::new().width(),
                colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            },
            false => Self::Plain,
        }
    }
}

/// Draws a table. A column without any text in it is left out. Only the last one ever wraps: ids and addresses are
/// there to be copied.
pub(crate) fn table(look: Look, header: &[&str], rows: &[Vec<Text>]) -> String {
    table_sparing(look, header, rows, &[])
}

/// The same, of which these columns are left out, one after another, where a terminal has no room for all. A line below
/// says so.
pub(crate) fn table_sparing(look: Look, header: &[&str], rows: &[Vec<Text>], spare: &[&str]) -> String {
    let is_used = |&column: &usize| {
        rows.iter()
            .any(|row| row.get(column).is_some_and(|cell| !cell.text.is_empty()))
    };
    let mut used: Vec<usize> = (0..header.len()).filter(is_used).collect();
    let left_out = spared(look, &mut used, (header, rows), spare);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    table.set_header(used.iter().map(|&column| Cell::new(header[column])));
    for row in rows {
        table.add_row(used.iter().map(|&column| cell(look, &row[column])));
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        let gap = if number + 1 < used.len() { GAP } else { 0 };
        column.set_padding((0, gap));
    }
    if let Look::Terminal { width, colour } = look {
        table.style_mut().header_separator = LineStyle::none().fill('─');
        if colour {
            table.enforce_styling();
        }
        if let Some(width) = width {
            wrap_last(&mut table, width);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if !left_out.is_empty() {
        let note = format!("(no room for {}; --json has all)", left_out.join(", "));
        text.push_str(&wrapped(look, &note));
        text.push('\n');
    }
    text
}

/// Takes columns out of `used` until the others fit, and returns their names. The last column need not fit: it wraps.
fn spared<'a>(
    look: Look,
    used: &mut Vec<usize>,
    (header, rows): (&[&'a str], &[Vec<Text>]),
    spare: &[&str],
) -> Vec<&'a str> {
    let Look::Terminal { width: Some(width), .. } = look else {
        return Vec::new();
    };
    let width_of = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0);
        longest.max(header[column].chars().count())
    };
    let fits = |used: &[usize]| {
        let Some((&last, others)) = used.split_last() else {
            return true;
        };
        let others: usize = others.iter().map(|&column| width_of(column) + usize::from(GAP)).sum();
        others + width_of(last).min(usize::from(MIN_WRAP)) <= usize::from(width)
    };
    let mut left_out = Vec::new();
    for name in spare {
        if fits(used) {
            break;
        }
        if let Some(at) = used.iter().position(|&column| header[column] == *name) {
            left_out.push(header[used.remove(at)]);
        }
    }
    left_out
}

/// A paragraph, broken between words where a terminal's width is known.
pub(crate) fn wrapped(look: Look, text: &str) -> String {
    let Look::Terminal { width: Some(width), .. } = look else {
        return text.to_owned();
    };
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > usize::from(width) {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

/// Lets the last column wrap, if the others leave it room enough to be read.
fn wrap_last(table: &mut Table, width: u16) {
    let widths = table.column_max_content_widths();
    let Some((_, others)) = widths.split_last() else { return };
    let taken: u16 = others.iter().map(|width| width.saturating_add(GAP)).sum();
    if width < taken.saturating_add(MIN_WRAP) {
        return;
    }
    let others = others.len();
    table
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width);
    for column in table.column_iter_mut().take(others) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
}

fn cell(look: Look, text: &Text) -> Cell {
    // In a pipe, a column without a value must still be a word, or the columns could not be counted.
    let shown = if text.text.is_empty() { "-" } else { &text.text };
    let cell = Cell::new(shown);
    match (look, text.tone) {
        (Look::Terminal { colour: true, .. }, Tone::Good) => cell.fg(Color::Green),
        (Look::Terminal { colour: true, .. }, Tone::Warn) => cell.fg(Color::Yellow),
        (Look::Terminal { colour: true, .. }, Tone::Bad) => cell.fg(Color::Red),
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_the_fitting_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(253_113_024_000), "253.1 GB");
        assert_eq!(bytes(u64::MAX), "18446744.1 TB");
    }

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        assert_eq!(age(999), "now");
        assert_eq!(age(1_000), "1 s");
        assert_eq!(age(119_999), "119 s");
        assert_eq!(age(120_000), "2 min");
        assert_eq!(age(7_200_000), "2 h");
        assert_eq!(age(172_800_000), "2 d");
    }

    #[test]
    fn what_a_terminal_would_obey_never_reaches_it() {
        assert_eq!(clean("a\u{1b}[31mb\nc"), "a [31mb c");
        assert_eq!(clean_lines("a\u{1b}[31mb\n\tc\r\u{7}"), "a[31mb\n\tc");
        let text = table(Look::Plain, &["X"], &[vec![Text::from("a\u{1b}]0;x\u{7}b")]]);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
    }

    #[test]
    fn a_piped_table_is_aligned_words_without_lines() {
        let rows = [
            vec!["a".into(), "long value".into(), "".into()],
            vec!["bcd".into(), "".into(), "".into()],
        ];
        let text = table(Look::Plain, &["ID", "NAME", "WHY"], &rows);
        assert_eq!(text, "ID   NAME\na    long value\nbcd  -\n");
    }

    #[test]
    fn on_a_terminal_only_the_last_column_wraps() {
        let rows = [vec![
            "worker-12345678".into(),
            "a reason that is longer than the room it has here".into(),
        ]];
        let at = |width| {
            let look = Look::Terminal {
                width: Some(width),
                colour: false,
            };
            table(look, &["ID", "WHY"], &rows)
        };
        let lines: Vec<_> = at(45).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "ID               WHY");
        assert!(lines[1].starts_with("───"), "{lines:?}");
        assert_eq!(lines[2], "worker-12345678  a reason that is longer than");
        assert!(
            lines.len() > 3 && lines.iter().all(|line| line.chars().count() <= 45),
            "{lines:?}"
        );
        // Too narrow to be read in: the terminal itself breaks the line.
        assert_eq!(at(30).lines().count(), 3);
    }

    #[test]
    fn a_narrow_terminal_goes_without_the_columns_that_can_be_spared_and_says_so() {
        let header = ["ID", "ADDRESS", "BEAT", "WHY"];
        let rows = [vec![
            "worker-12345678".into(),
            "10.0.0.5:7835".into(),
            "3 s".into(),
            "lost".into(),
        ]];
        let at = |width| {
            let look = Look::Terminal {
                width: Some(width),
                colour: false,
            };
            table_sparing(look, &header, &rows, &["ADDRESS", "BEAT"])
        };
        assert!(
            at(42).starts_with("ID               ADDRESS        BEAT  WHY\n"),
            "{}",
            at(42)
        );
        assert!(at(40).starts_with("ID               BEAT  WHY\n"), "{}", at(40));
        assert!(
            at(40).ends_with("(no room for ADDRESS; --json has all)\n"),
            "{}",
            at(40)
        );
        assert!(at(22).starts_with("ID               WHY\n"), "{}", at(22));
        assert!(!at(42).contains("no room"));
        let piped = table_sparing(Look::Plain, &header, &rows, &["ADDRESS", "BEAT"]);
        assert!(piped.contains("10.0.0.5:7835"), "{piped}");
    }

    #[test]
    fn a_paragraph_breaks_between_words() {
        let look = |width| Look::Terminal {
            width: Some(width),
            colour: false,
        };
        assert_eq!(wrapped(look(9), "what the figures mean"), "what the\nfigures\nmean");
        assert_eq!(wrapped(look(5), "unbreakable word"), "unbreakable\nword");
        assert_eq!(wrapped(Look::Plain, "as it stands"), "as it stands");
    }

    #[test]
    fn colours_show_only_where_they_are_wanted() {
        let rows = [vec![Text::toned("lost", Tone::Bad)]];
        let terminal = |colour| Look::Terminal { width: None, colour };
        assert!(table(terminal(true), &["S"], &rows).contains("\u{1b}["));
        for look in [terminal(false), Look::Plain] {
            assert!(!table(look, &["S"], &rows).contains('\u{1b}'), "{look:?}");
        }
    }
}
