//! Which device takes a model.
//!
//! What is wanted of [`place`], and property-tested below:
//! 1. What is granted fits: never more than the device has free, never on a device that is closed.
//! 2. The KV cache gets at least what one request needs, and never more than what is wanted.
//! 3. If any open device has room for the least, the model is placed; a refusal names every device, and why not there.
//! 4. If any open device has room for all that is wanted, all of it is granted; among those the one with the least free is
//!    taken, so that the large gaps stay for large models.
//! 5. Otherwise the one with the most free is taken, where the cache suffers least.
//! 6. The same input gives the same choice; among equals the first.
//!
//! And of [`free_bytes`]: a promise counts until the memory is really taken, and is never counted twice.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// KV cache that a worker is given where there is room, even where one request takes less: room for several.
pub const KV_BYTES: u64 = 1 << 30;
/// Tokens of one request for which there is to be room in any case, unless the model was made for fewer or others were
/// asked for. Models are made for up to millions, whose cache would fill a device that has room for several models.
pub const USUAL_TOKENS: u64 = 8192;
/// Tokens without which a model that was made for more is not started, unless fewer were asked for.
pub const LEAST_TOKENS: u64 = 4096;

/// What a model takes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Bytes that it takes in any case: weights, scratch, the process itself.
    pub fixed_bytes: u64,
    /// Bytes of one token in the KV cache.
    pub kv_bytes_per_token: u64,
    /// Tokens by which the cache grows; never 0.
    pub block_tokens: u64,
    /// Tokens of the KV cache below which it is not started.
    pub least_tokens: u64,
    /// Tokens that it is given where there is room.
    pub wanted_tokens: u64,
}

impl Need {
    /// Of a model that was made for `trained` tokens, where requests of up to `asked` tokens are to be served; `None`: of
    /// [`USUAL_TOKENS`], or as many as [`KV_BYTES`] hold. More than it was made for is never served. The cache has whole
    /// blocks of `block_tokens`.
    pub fn new(
        fixed_bytes: u64,
        kv_bytes_per_token: u64,
        block_tokens: NonZeroU64,
        trained: u64,
        asked: Option<u64>,
    ) -> Self {
        let context = asked.unwrap_or(USUAL_TOKENS).min(trained).max(1);
        let least = match asked {
            Some(_) => context,
            None => context.min(LEAST_TOKENS),
        };
        let wanted = context.max(KV_BYTES.checked_div(kv_bytes_per_token).unwrap_or(0));
        let block_tokens = block_tokens.get();
        Self {
            fixed_bytes,
            kv_bytes_per_token,
            block_tokens,
            least_tokens: least.next_multiple_of(block_tokens),
            wanted_tokens: wanted.next_multiple_of(block_tokens),
        }
    }

    /// All that it takes with a cache of so many tokens.
    pub fn bytes(&self, tokens: u64) -> u64 {
        self.fixed_bytes
            .saturating_add(self.kv_bytes_per_token.saturating_mul(tokens))
    }

    /// Tokens of the cache that fit into so many bytes, at most those that are wanted; `None` if the least does not fit.
    pub(crate) fn tokens_in(&self, bytes: u64) -> Option<u64> {
        let left = bytes.checked_sub(self.fixed_bytes)?;
        let fitting = left.checked_div(self.kv_bytes_per_token).unwrap_or(u64::MAX);
        let block = self.block_tokens.max(1);
        let tokens = fitting.min(self.wanted_tokens) / block * block;
        (tokens >= self.least_tokens).then_some(tokens)
    }
}

/// A device that might take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Names the device.
    pub id: String,
    /// Memory that there is.
    pub total_bytes: u64,
    /// Of that, what may be promised now; see [`free_bytes`].
    pub free_bytes: u64,
    /// Why nothing may be started there now, whatever is free: its owner is at work, no engine runs on it.
    pub closed: Option<String>,
}

/// Where a model goes, and what it is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Which of the devices.
    pub index: usize,
    /// Tokens of its KV cache.
    pub kv_tokens: u64,
    /// Memory that it may take in all.
    pub bytes: u64,
}

/// No device takes the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One for each device, in the order given.
    pub reasons: Vec<Reason>,
}

/// Why not on this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Which device.
    pub device: String,
    /// Why not.
    pub why: Why,
}

/// Why a device does not take a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nothing may be started there.
    Closed(String),
    /// There is too little room.
    TooSmall {
        /// Bytes that it takes with the smallest cache.
        needs: u64,
        /// Bytes that may be promised.
        free: u64,
        /// Bytes that the device has.
        total: u64,
        /// Tokens of that smallest cache.
        tokens: u64,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reasons.is_empty() {
            return f.write_str("there is no device");
        }
        for (number, reason) in self.reasons.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", reason.device, reason.why)?;
        }
        Ok(())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(why) => f.write_str(why),
            Self::TooSmall {
                needs,
                free,
                total,
                tokens,
            } => write!(
                f,
                "it takes {} MiB with a cache of {tokens} tokens, and {} of {} MiB are free",
                needs.div_ceil(1 << 20),
                free >> 20,
                total >> 20
            ),
        }
    }
}

/// Chooses a device among `rooms`.
pub fn place(need: &Need, rooms: &[Room]) -> Result<Placed, Refused> {
    let fits = rooms.iter().enumerate().filter(|(_, room)| room.closed.is_none());
    let fits = fits.filter_map(|(index, room)| {
        let kv_tokens = need.tokens_in(room.free_bytes)?;
        let placed = Placed {
            index,
            kv_tokens,
            bytes: need.bytes(kv_tokens),
        };
        Some((placed, room.free_bytes))
    });
    // Where all that is wanted fits, the tightest; else the widest. The first of equals, as `min_by_key` has it.
    let best = fits.min_by_key(|(placed, free)| match placed.kv_tokens == need.wanted_tokens {
        true => (false, *free),
        false => (true, u64::MAX - free),
    });
    best.map(|(placed, _)| placed).ok_or_else(|| Refused {
        reasons: rooms.iter().map(|room| reason(need, room)).collect(),
    })
}

fn reason(need: &Need, room: &Room) -> Reason {
    let why = match &room.closed {
        Some(why) => Why::Closed(why.clone()),
        None => Why::TooSmall {
            needs: need.bytes(need.least_tokens),
            free: room.free_bytes,
            total: room.total_bytes,
            tokens: need.least_tokens,
        },
    };
    Reason {
        device: room.id.clone(),
        why,
    }
}

/// Memory that was promised to somebody, and how much of it he was seen to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// What he may take.
    pub granted_bytes: u64,
    /// What he holds already, which nobody else finds available.
    pub held_bytes: u64,
}

/// What may be promised of a device's memory: what nobody holds now, less the owner's reserve and what the promises given
/// so far have still to come.
pub fn free_bytes(available: u64, reserve: u64, promises: impl IntoIterator<Item = Promise>) -> u64 {
    let open = promises
        .into_iter()
        .map(|promise| promise.granted_bytes.saturating_sub(promise.held_bytes))
        .fold(reserve, u64::saturating_add);
    available.saturating_sub(open)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn room(id: &str, free_bytes: u64) -> Room {
        Room {
            id: id.into(),
            total_bytes: 24 * GIB,
            free_bytes,
            closed: None,
        }
    }

    fn need(fixed_bytes: u64, kv_bytes_per_token: u64, trained: u64, asked: Option<u64>) -> Need {
        Need::new(
            fixed_bytes,
            kv_bytes_per_token,
            NonZeroU64::new(32).unwrap(),
            trained,
            asked,
        )
    }

    /// A model of 8 billion parameters in four bits each.
    fn medium() -> Need {
        need(5 * GIB, 128 << 10, 131_072, Some(8192))
    }

    fn any_need() -> impl Strategy<Value = Need> {
        (
            0..40_u64,
            0..5_u64,
            1..64_u64,
            1..15_000_u64,
            prop::option::of(1..20_000_u64),
        )
            .prop_map(|(fixed, per_token, block, trained, asked)| {
                Need::new(
                    fixed * GIB,
                    per_token << 17,
                    NonZeroU64::new(block).unwrap(),
                    trained,
                    asked,
                )
            })
    }

    fn any_rooms() -> impl Strategy<Value = Vec<Room>> {
        let any_room = (0..48_u64, any::<u32>(), prop::bool::weighted(0.2)).prop_map(|(gib, bytes, closed)| Room {
            id: String::new(),
            total_bytes: 48 * GIB,
            free_bytes: gib * GIB + u64::from(bytes >> 3),
            closed: closed.then(|| "closed".to_owned()),
        });
        prop::collection::vec(any_room, 0..9)
    }

    fn open(rooms: &[Room]) -> impl Iterator<Item = &Room> {
        rooms.iter().filter(|room| room.closed.is_none())
    }

    proptest! {
        #[test]
        fn what_is_granted_fits_on_an_open_device(need in any_need(), rooms in any_rooms()) {
            if let Ok(placed) = place(&need, &rooms) {
                let room = &rooms[placed.index];
                prop_assert!(room.closed.is_none());
                prop_assert!(placed.bytes <= room.free_bytes);
                prop_assert_eq!(placed.bytes, need.bytes(placed.kv_tokens));
                prop_assert!((need.least_tokens..=need.wanted_tokens).contains(&placed.kv_tokens));
                prop_assert_eq!(placed.kv_tokens % need.block_tokens, 0);
                // Not a block more would have fitted.
                let more = need.bytes(placed.kv_tokens + need.block_tokens);
                prop_assert!(placed.kv_tokens == need.wanted_tokens || more > room.free_bytes);
            }
        }

        #[test]
        fn nothing_is_refused_that_fits_and_a_refusal_names_every_device(need in any_need(), rooms in any_rooms()) {
            if let Err(refused) = place(&need, &rooms) {
                prop_assert!(open(&rooms).all(|room| room.free_bytes < need.bytes(need.least_tokens)));
                prop_assert_eq!(refused.reasons.len(), rooms.len());
                for (reason, room) in refused.reasons.iter().zip(&rooms) {
                    prop_assert_eq!(matches!(reason.why, Why::Closed(_)), room.closed.is_some());
                }
            }
        }

        #[test]
        fn where_all_fits_the_tightest_is_taken_and_else_the_widest(need in any_need(), rooms in any_rooms()) {
            if let Ok(placed) = place(&need, &rooms) {
                let taken = rooms[placed.index].free_bytes;
                let all = need.bytes(need.wanted_tokens);
                if open(&rooms).any(|room| room.free_bytes >= all) {
                    prop_assert_eq!(placed.kv_tokens, need.wanted_tokens);
                    prop_assert!(open(&rooms).all(|room| room.free_bytes < all || room.free_bytes >= taken));
                } else {
                    prop_assert!(open(&rooms).all(|room| room.free_bytes <= taken));
                }
            }
        }

        #[test]
        fn one_after_the_other_they_never_take_more_than_there_is(
            needs in prop::collection::vec(any_need(), 1..12),
            sizes in prop::collection::vec(1..48_u64, 1..9),
        ) {
            let mut promises: Vec<Vec<Promise>> = vec![Vec::new(); sizes.len()];
            for need in needs {
                let rooms: Vec<Room> = sizes
                    .iter()
                    .zip(&promises)
                    .map(|(gib, given)| room("device", free_bytes(gib * GIB, GIB / 2, given.iter().copied())))
                    .collect();
                if let Ok(placed) = place(&need, &rooms) {
                    promises[placed.index].push(Promise { granted_bytes: placed.bytes, held_bytes: 0 });
                }
            }
            for (gib, given) in sizes.iter().zip(&promises) {
                let granted: u64 = given.iter().map(|promise| promise.granted_bytes).sum();
                prop_assert!(given.is_empty() || granted + GIB / 2 <= gib * GIB);
            }
        }

        #[test]
        fn taking_what_was_promised_frees_and_costs_nothing(unheld in 0..64_u64, granted in 0..64_u64, share in 0..=8_u64) {
            // A worker that fills its grant: what it holds is no longer available, and no longer owed.
            let promise = |held_bytes| [Promise { granted_bytes: granted * GIB, held_bytes }];
            let held = granted * GIB / 8 * share;
            let before = free_bytes(unheld * GIB + held, GIB, promise(0));
            prop_assert_eq!(free_bytes(unheld * GIB, GIB, promise(held)), before);
        }
    }

    #[test]
    fn a_small_model_leaves_the_large_gap_for_a_large_one() {
        let rooms = [
            room("cuda:0", 24 * GIB),
            room("cuda:1", 7 * GIB),
            room("cuda:2", 6 * GIB),
        ];
        let placed = place(&medium(), &rooms).unwrap();
        assert_eq!((placed.index, placed.kv_tokens, placed.bytes), (2, 8192, 6 * GIB));
        let large = need(20 * GIB, 128 << 10, 8192, None);
        assert_eq!(place(&large, &rooms).unwrap().index, 0);
    }

    #[test]
    fn a_cache_that_does_not_fit_whole_is_cut_on_the_widest_device_but_not_below_what_was_asked_for() {
        let rooms = [room("cuda:0", 5 * GIB + GIB / 2), room("cuda:1", 5 * GIB + GIB * 3 / 4)];
        let not_asked = need(5 * GIB, 128 << 10, 131_072, None);
        let placed = place(&not_asked, &rooms).unwrap();
        assert_eq!((placed.index, placed.kv_tokens), (1, 6144));
        assert!(place(&medium(), &rooms).is_err(), "8192 tokens were asked for");
    }

    #[test]
    fn a_refusal_has_the_figures_of_each_device() {
        let mut rooms = [room("cuda:0", 3 * GIB), room("cuda:1", 20 * GIB)];
        rooms[1].closed = Some("its owner is at work: `game` (process 7) holds 9000 MiB".into());
        let refused = place(&medium(), &rooms).unwrap_err().to_string();
        assert_eq!(
            refused,
            "cuda:0: it takes 6144 MiB with a cache of 8192 tokens, and 3072 of 24576 MiB are free; cuda:1: its owner is \
             at work: `game` (process 7) holds 9000 MiB"
        );
        assert_eq!(place(&medium(), &[]).unwrap_err().to_string(), "there is no device");
    }

    #[test]
    fn what_is_asked_for_bounds_the_cache_and_never_stretches_the_model() {
        let odd = need(0, 1 << 20, 2048, Some(100));
        assert_eq!((odd.least_tokens, odd.wanted_tokens), (128, 1024), "whole blocks");
        let asked = need(0, 1 << 20, 2048, Some(9000));
        assert_eq!((asked.least_tokens, asked.wanted_tokens), (2048, 2048));
        let not_asked = need(0, 1 << 20, 32_768, None);
        assert_eq!(
            (not_asked.least_tokens, not_asked.wanted_tokens),
            (LEAST_TOKENS, USUAL_TOKENS)
        );
        let cheap = need(0, 1 << 15, 32_768, None);
        assert_eq!(cheap.wanted_tokens, 32_768, "the whole context, as it takes a GiB");
        let small = need(0, 1 << 10, 512, None);
        assert_eq!((small.least_tokens, small.wanted_tokens), (512, 1 << 20), "1 GiB of it");
        let no_cache = need(GIB, 0, 512, None);
        assert_eq!(place(&no_cache, &[room("cpu", GIB)]).unwrap().kv_tokens, 512);
    }
}
