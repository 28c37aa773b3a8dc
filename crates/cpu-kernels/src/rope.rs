//! Rotary positions: a head's pairs of elements, turned by angles that grow with the position (RoFormer, Su et al. 2021).

/// Which elements of a head form the pairs that are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours: `2i` and `2i + 1`.
    Interleaved,
    /// Across the halves of what is turned: `i` and `i + pairs`.
    Halves,
}

/// Cosines and sines of the rows of a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeTable {
    pairs: usize,
    rows: usize,
    /// Per row, `pairs` cosines.
    cos: Vec<f32>,
    /// Per row, `pairs` sines.
    sin: Vec<f32>,
}

impl RopeTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the table: for each row's position and each pair's frequency (radians per token), the cosine and sine
    /// of `position * frequency`, times `magnitude`.
    pub fn fill(&mut self, positions: &[usize], frequencies: &[f64], magnitude: f32) {
        self.pairs = frequencies.len();
        self.rows = positions.len();
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for frequency in frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push((cos * f64::from(magnitude)) as f32);
                self.sin.push((sin * f64::from(magnitude)) as f32);
            }
        }
    }

    /// Pairs of a head that are turned; the rest of a head stays as it is.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Rows that the table is for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// A row's cosines and sines.
    pub(crate) fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let pairs = row * self.pairs..(row + 1) * self.pairs;
        (&self.cos[pairs.clone()], &self.sin[pairs])
    }
}

/// Turns the first `2 * cos.len()` elements of a head.
#[inline(always)]
pub(crate) fn turn(head: &mut [f32], (cos, sin): (&[f32], &[f32]), style: RopeStyle) {
    match style {
        RopeStyle::Interleaved => {
            for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
        RopeStyle::Halves => {
            let (low, high) = head.split_at_mut(cos.len());
            for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                let (a, b) = (*low, *high);
                *low = a * cos - b * sin;
                *high = a * sin + b * cos;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_moves_each_pair_by_its_angle_and_leaves_the_rest_of_a_head() {
        let frequencies = [0.5, 0.25];
        let mut table = RopeTable::new();
        table.fill(&[0, 3], &frequencies, 1.0);
        assert_eq!((table.rows(), table.pairs()), (2, 2));
        let head = [0.3f32, -1.5, 2.0, 0.7, 9.0, -9.0];
        for (style, pairs) in [
            (RopeStyle::Interleaved, [(0, 1), (2, 3)]),
            (RopeStyle::Halves, [(0, 2), (1, 3)]),
        ] {
            let mut turned = head;
            turn(&mut turned, table.row(0), style);
            assert_eq!(turned, head, "position 0 turns nothing");
            turn(&mut turned, table.row(1), style);
            let mut truth = head.map(f64::from);
            for ((a, b), frequency) in pairs.into_iter().zip(frequencies) {
                let (sin, cos) = (3.0 * frequency).sin_cos();
                truth[a] = f64::from(head[a]) * cos - f64::from(head[b]) * sin;
                truth[b] = f64::from(head[a]) * sin + f64::from(head[b]) * cos;
            }
            for (turned, truth) in turned.iter().zip(truth) {
                assert!(
                    (f64::from(*turned) - truth).abs() < 1e-6,
                    "{style:?}: {turned} is not {truth}"
                );
            }
        }
    }

    #[test]
    fn the_magnitude_stretches_what_is_turned() {
        let mut table = RopeTable::new();
        table.fill(&[0], &[1.0], 2.5);
        let mut head = [1.0, -2.0, 3.0];
        turn(&mut head, table.row(0), RopeStyle::Halves);
        assert_eq!(head, [2.5, -5.0, 3.0]);
    }

    #[test]
    fn a_table_is_filled_anew_each_step() {
        let mut table = RopeTable::new();
        table.fill(&[5, 6, 7], &[1.0, 0.1], 1.0);
        table.fill(&[0], &[1.0], 1.0);
        let mut fresh = RopeTable::new();
        fresh.fill(&[0], &[1.0], 1.0);
        assert_eq!(table, fresh);
    }
}
