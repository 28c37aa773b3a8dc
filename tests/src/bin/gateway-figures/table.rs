//! The tables that are printed: a row for each gateway, the median of the rounds, and what it is of the first row's.

use std::collections::BTreeMap;

/// Figures of several gateways, round by round.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    columns: &'static [Column],
    /// In the order in which they were added.
    rows: Vec<String>,
    values: BTreeMap<(usize, usize), Vec<f64>>,
}

/// A figure that is measured.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    /// Digits after the point.
    pub(crate) digits: usize,
    /// Whether a ratio to the first row says something.
    pub(crate) has_ratio: bool,
}

/// The middle of some measurements; of an even number the upper of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &'static [Column]) -> Self {
        Self {
            title: title.into(),
            columns,
            rows: Vec::new(),
            values: BTreeMap::new(),
        }
    }

    /// One round's figures of one gateway, a value for each column.
    pub(crate) fn add(&mut self, row: &str, values: impl IntoIterator<Item = f64>) {
        let place = self.rows.iter().position(|name| name == row).unwrap_or_else(|| {
            self.rows.push(row.to_owned());
            self.rows.len() - 1
        });
        for (column, value) in values.into_iter().enumerate() {
            self.values.entry((place, column)).or_default().push(value);
        }
    }

    fn value(&self, row: usize, column: usize) -> Option<f64> {
        self.values.get(&(row, column)).map(|values| median(values))
    }

    pub(crate) fn print(&self) {
        print!("\n{}\n| |", self.title);
        for column in self.columns {
            print!(" {} |", column.name);
        }
        println!("\n|---|{}", "---|".repeat(self.columns.len()));
        for (row, name) in self.rows.iter().enumerate() {
            print!("| {name} |");
            for (place, column) in self.columns.iter().enumerate() {
                match (self.value(row, place), self.value(0, place)) {
                    (Some(value), Some(first)) if column.has_ratio && row > 0 && first > 0.0 => {
                        print!(" {value:.*} ({:.2} x) |", column.digits, value / first);
                    }
                    (Some(value), _) => print!(" {value:.*} |", column.digits),
                    (None, _) => print!(" - |"),
                }
            }
            println!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_mind_one_bad_round() {
        assert_eq!(median(&[900.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
