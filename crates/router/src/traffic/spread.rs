//! A small histogram from which percentiles are read.

/// Buckets in each doubling of the value: they are 26 % wide.
const PER_OCTAVE: f64 = 3.0;
/// The least value that is told apart from less.
const LOWEST: f64 = 0.1;
/// Buckets: up to 2^24 times the least value, 28 minutes where it is in milliseconds.
const BUCKETS: usize = 72;

/// How values are spread, on a logarithmic scale: percentiles of it are a tenth off at most.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spread([u32; BUCKETS]);

impl Default for Spread {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Spread {
    /// Notes a value.
    pub(super) fn note(&mut self, value: f64) {
        let place = ((value / LOWEST).log2() * PER_OCTAVE).floor();
        // Of what is beyond the scale on either side, and of what is no number, the nearest bucket.
        let place = (place.max(0.0) as usize).min(BUCKETS - 1);
        self.0[place] = self.0[place].saturating_add(1);
    }

    /// Adds what another one has.
    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count = count.saturating_add(*more);
        }
    }

    /// The value that the given part of all values (0 to 1) does not exceed; `None` if there are none.
    pub(super) fn quantile(&self, part: f64) -> Option<f64> {
        let all: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        if all == 0 {
            return None;
        }
        let rank = (part * all as f64).ceil().max(1.0);
        let mut before = 0.0;
        let place = self.0.iter().position(|count| {
            before += f64::from(*count);
            before >= rank
        })?;
        // The middle of the bucket, as the scale sees it.
        Some(LOWEST * ((place as f64 + 0.5) / PER_OCTAVE).exp2())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_values_there_are_no_percentiles() {
        assert_eq!(Spread::default().quantile(0.5), None);
    }

    #[test]
    fn values_beyond_the_scale_are_put_at_its_ends() {
        for (value, end) in [(0.0, 0.1), (1e12, 1.6e6), (f64::NAN, 0.1)] {
            let mut spread = Spread::default();
            spread.note(value);
            let found = spread.quantile(0.5).unwrap();
            assert!((0.8..1.25).contains(&(found / end)), "{value}: {found}");
        }
    }

    proptest! {
        #[test]
        fn a_percentile_is_near_the_true_one(values in prop::collection::vec(0.2_f64..1e6, 1..200), part in 0.0_f64..=1.0) {
            let (mut first, mut second) = (Spread::default(), Spread::default());
            for (number, value) in values.iter().enumerate() {
                if number % 2 == 0 { first.note(*value) } else { second.note(*value) };
            }
            first.add(&second);
            let mut sorted = values;
            sorted.sort_by(f64::total_cmp);
            let rank = ((part * sorted.len() as f64).ceil() as usize).max(1);
            let ratio = first.quantile(part).unwrap() / sorted[rank - 1];
            prop_assert!((0.88..1.13).contains(&ratio), "{ratio}");
        }
    }
}
