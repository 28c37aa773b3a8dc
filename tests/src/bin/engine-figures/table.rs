//! The table that is printed.

/// Rows of figures, ours beside the peer's.
pub(crate) struct Table {
    with_peer: bool,
    rows: Vec<Row>,
    notes: Vec<String>,
}

struct Row {
    name: String,
    unit: &'static str,
    ours: Spread,
    theirs: Option<Spread>,
}

/// What several runs gave.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(runs: &[f64]) -> Option<Self> {
        (!runs.is_empty()).then(|| Self {
            least: runs.iter().copied().fold(f64::INFINITY, f64::min),
            median: median(runs),
            most: runs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

impl Table {
    pub(crate) fn new(with_peer: bool) -> Self {
        Self {
            with_peer,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A rate: the ratio tells how many times as fast we are.
    pub(crate) fn more_is_better(&mut self, name: &str, unit: &'static str, ours: &[f64], theirs: &[f64]) {
        self.add(name, unit, ours, theirs);
    }

    /// A time or a size: the ratio tells what part of theirs ours is.
    pub(crate) fn less_is_better(&mut self, name: &str, unit: &'static str, ours: &[f64], theirs: &[f64]) {
        self.add(&format!("{name} (less is better)"), unit, ours, theirs);
    }

    fn add(&mut self, name: &str, unit: &'static str, ours: &[f64], theirs: &[f64]) {
        let Some(ours) = Spread::of(ours) else { return };
        let row = Row {
            name: name.to_owned(),
            unit,
            ours,
            theirs: Spread::of(theirs),
        };
        eprintln!("{}", self.line(&row));
        self.rows.push(row);
    }

    /// A line below the table.
    pub(crate) fn note(&mut self, text: String) {
        eprintln!("{text}");
        self.notes.push(text);
    }

    /// Prints everything as a Markdown table.
    pub(crate) fn print(&self) {
        let (peer, rule) = if self.with_peer {
            (" llama.cpp | rbee / llama.cpp |", "---|---|")
        } else {
            ("", "")
        };
        println!("| work | rbee |{peer}\n|---|---|{rule}");
        for row in &self.rows {
            println!("{}", self.line(row));
        }
        for note in &self.notes {
            println!("\n{note}");
        }
    }

    fn line(&self, row: &Row) -> String {
        let cell = |spread: &Spread| {
            let digits = if spread.median < 10.0 { 2 } else { 0 };
            format!(
                "{:.digits$} ({:.digits$}-{:.digits$})",
                spread.median, spread.least, spread.most
            )
        };
        let peer = match (&row.theirs, self.with_peer) {
            (Some(theirs), _) => format!(" {} | {:.2} |", cell(theirs), row.ours.median / theirs.median),
            (None, true) => " - | - |".to_owned(),
            (None, false) => String::new(),
        };
        format!("| {}, {} | {} |{peer}", row.name, row.unit, cell(&row.ours))
    }
}

/// The middle of the values; the mean of the two middle ones of an even number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.is_empty() {
        f64::NAN
    } else if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}
