//! The budget of the store's folder: what is removed so that a model fits.

use std::time::SystemTime;

use crate::StoreError;
use crate::file;
use crate::folder::{Contents, Folder, Trash};
use crate::holds::{Claim, Gate};
use crate::manifest::{self, State};

/// Kept in the work folder of a pull: how large its model will be, in bytes.
const PROMISE: &str = "promise.json";

/// The room that one pull may take.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) folder: Folder,
    /// Name of the folder of the model that is pulled.
    pub(crate) name: String,
    /// Budget; `None`: as much as the disk has.
    pub(crate) max_bytes: Option<u64>,
}

/// Something in the folder that takes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Occupant {
    bytes: u64,
    last_used: SystemTime,
    /// Nobody holds it, nor is it being pulled.
    is_removable: bool,
}

/// What may not be removed leaves too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TooFull {
    kept_bytes: u64,
}

/// Which occupants to remove so that `needed` bytes fit into `max`: those used least recently first, and no more than it
/// takes. Nothing is removed where it would not help.
fn plan(occupants: &[Occupant], needed: u64, max: u64) -> Result<Vec<usize>, TooFull> {
    let sum = |is_removable: bool| {
        let these = occupants
            .iter()
            .filter(|occupant| occupant.is_removable == is_removable);
        these.map(|occupant| u128::from(occupant.bytes)).sum::<u128>()
    };
    let kept = sum(false);
    if kept + u128::from(needed) > u128::from(max) {
        let kept_bytes = u64::try_from(kept).unwrap_or(u64::MAX);
        return Err(TooFull { kept_bytes });
    }
    let mut total = kept + sum(true) + u128::from(needed);
    let mut victims: Vec<usize> = (0..occupants.len())
        .filter(|&nth| occupants[nth].is_removable)
        .collect();
    victims.sort_by_key(|&nth| occupants[nth].last_used);
    let is_needed = |&&nth: &&usize| {
        let was_full = total > u128::from(max);
        total -= u128::from(occupants[nth].bytes);
        was_full
    };
    let count = victims.iter().take_while(is_needed).count();
    victims.truncate(count);
    Ok(victims)
}

/// An occupant with the right to remove it.
struct Found {
    name: String,
    occupant: Occupant,
    is_model: bool,
    _claim: Option<Claim>,
}

impl Room {
    /// Removes models until one of `bytes` bytes fits, and keeps its place against other pulls. To be called by the pull at
    /// work, once it knows the size; blocks.
    pub(crate) fn make(&self, bytes: u64) -> Result<(), StoreError> {
        let Some(max_bytes) = self.max_bytes else {
            return Ok(());
        };
        let work = self.folder.work(&self.name);
        file::make_dir(&work)?;
        let thrown = {
            let gate = self.folder.locks.gate()?;
            let found = self.occupants(&gate)?;
            let occupants: Vec<_> = found.iter().map(|found| found.occupant).collect();
            let victims = plan(&occupants, bytes, max_bytes).map_err(|full| StoreError::NoRoom {
                needed_bytes: bytes,
                max_bytes,
                held_bytes: full.kept_bytes,
            })?;
            file::write_json(&work.join(PROMISE), &bytes)?;
            let throw = |nth: usize| self.throw(&found[nth], &gate);
            victims.into_iter().map(throw).collect::<Result<Vec<_>, _>>()?
        };
        thrown.into_iter().try_for_each(Trash::delete)
    }

    fn throw(&self, victim: &Found, gate: &Gate<'_>) -> Result<Trash, StoreError> {
        let path = if victim.is_model {
            self.folder.model(&victim.name)
        } else {
            self.folder.work(&victim.name)
        };
        tracing::info!(
            path = %path.display(),
            bytes = victim.occupant.bytes,
            "removed to keep to the budget of the models' folder"
        );
        self.folder.throw(&path, gate)
    }

    /// All that takes room, but for what this pull replaces.
    fn occupants(&self, gate: &Gate<'_>) -> Result<Vec<Found>, StoreError> {
        let mut all = Vec::new();
        for name in self.folder.model_names()? {
            if name != self.name {
                all.extend(self.model(name, gate)?);
            }
        }
        for name in self.folder.work_names()? {
            if name != self.name {
                all.push(self.leftover(name)?);
            }
        }
        Ok(all)
    }

    fn model(&self, name: String, gate: &Gate<'_>) -> Result<Option<Found>, StoreError> {
        let path = self.folder.model(&name);
        let (bytes, written) = match manifest::look(&path) {
            Ok(State::Other) => return Ok(None),
            Ok(State::Whole(manifest)) => (manifest.size_bytes, manifest.stored_in(&path).last_used),
            Ok(State::Damaged { .. }) | Err(_) => {
                let contents = Contents::of(&path);
                (contents.bytes, contents.last_changed)
            }
        };
        let claim = gate.claim(&name)?;
        let last_used = gate.last_used(&name).map_or(written, |used| used.max(written));
        Ok(Some(Found {
            name,
            occupant: Occupant {
                bytes,
                last_used,
                is_removable: claim.is_some(),
            },
            is_model: true,
            _claim: claim,
        }))
    }

    /// What pulls of a model have left; of a pull at work, what it will take.
    fn leftover(&self, name: String) -> Result<Found, StoreError> {
        let path = self.folder.work(&name);
        let claim = self.folder.locks.claim_pull(&name)?;
        let contents = Contents::of(&path);
        let promised = match &claim {
            Some(_) => None,
            None => file::read_json::<u64>(&path.join(PROMISE))?,
        };
        Ok(Found {
            name,
            occupant: Occupant {
                bytes: contents.bytes.max(promised.unwrap_or(0)),
                last_used: contents.last_changed,
                is_removable: claim.is_some(),
            },
            is_model: false,
            _claim: claim,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn occupants() -> impl Strategy<Value = Vec<Occupant>> {
        let one = (0_u64..100, 0_u64..20, any::<bool>()).prop_map(|(bytes, used, is_removable)| Occupant {
            bytes,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(used),
            is_removable,
        });
        prop::collection::vec(one, 0..12)
    }

    fn bytes<'a>(occupants: impl IntoIterator<Item = &'a Occupant>) -> u64 {
        occupants.into_iter().map(|occupant| occupant.bytes).sum()
    }

    proptest! {
        #[test]
        fn what_goes_is_nobodys_is_the_oldest_suffices_and_is_no_more_than_needed(
            all in occupants(),
            needed in 0_u64..300,
            max in 0_u64..600,
        ) {
            match plan(&all, needed, max) {
                Err(TooFull { kept_bytes }) => {
                    prop_assert_eq!(kept_bytes, bytes(all.iter().filter(|o| !o.is_removable)));
                    prop_assert!(kept_bytes + needed > max, "it would have fitted");
                }
                Ok(victims) => {
                    prop_assert!(victims.iter().all(|&nth| all[nth].is_removable));
                    let stay = |nth: &usize| !victims.contains(nth);
                    let stays: Vec<_> = (0..all.len()).filter(stay).map(|nth| all[nth]).collect();
                    prop_assert!(bytes(&stays) + needed <= max, "it does not fit");
                    let newest_victim = victims.iter().map(|&nth| all[nth].last_used).max();
                    let oldest_stay = stays.iter().filter(|o| o.is_removable).map(|o| o.last_used).min();
                    if let (Some(gone), Some(stays)) = (newest_victim, oldest_stay) {
                        prop_assert!(gone <= stays, "one that was used longer ago stays");
                    }
                    if let Some(&last) = victims.last() {
                        prop_assert!(bytes(&stays) + all[last].bytes + needed > max, "the last one could have stayed");
                    }
                }
            }
        }
    }

    #[test]
    fn figures_beyond_any_disk_do_not_wrap_around() {
        let huge = Occupant {
            bytes: u64::MAX,
            last_used: SystemTime::UNIX_EPOCH,
            is_removable: true,
        };
        assert_eq!(plan(&[huge, huge], u64::MAX, u64::MAX), Ok(vec![0, 1]));
        let kept = Occupant {
            is_removable: false,
            ..huge
        };
        let full = TooFull { kept_bytes: u64::MAX };
        assert_eq!(plan(&[kept, kept], 1, u64::MAX), Err(full));
    }
}
