//! Many threads at once: what each of them may rely on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use super::probe::{Probe, goodbye, id, model, peer, probe, receipt};
use crate::{EventKind, Outcome, Registry, RegistryOptions};

const WRITERS: u64 = 4;
const ROUNDS: u64 = 3_000;

fn registry() -> Registry<Probe> {
    Registry::new(RegistryOptions {
        event_capacity: 1 << 16,
        ..RegistryOptions::default()
    })
}

#[test]
fn writers_of_the_same_names_lose_no_beat_and_leave_the_index_equal_to_a_scan() {
    let registry = registry();
    let now = Instant::now();
    let done = AtomicBool::new(false);
    // Beats of members, their goodbyes included.
    let taken = AtomicU64::new(0);
    let mut events = registry.subscribe();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (registry, taken) = (&registry, &taken);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let name = format!("w{}", (round + writer) % 3);
                        let beat = Probe {
                            model: Some(model(["x", "y"][(round % 2) as usize])),
                            ..probe(&name, 0, 0)
                        };
                        registry.record(beat, receipt(peer(), now)).unwrap();
                        taken.fetch_add(1, Ordering::Relaxed);
                        match round % 11 {
                            0 => {
                                let recorded = registry.record(goodbye(&name, 0, 0), receipt(peer(), now)).unwrap();
                                taken.fetch_add(u64::from(recorded.gap.is_some()), Ordering::Relaxed);
                            }
                            5 => {
                                if let Some(member) = registry.get(&id(&name)) {
                                    registry.remove(&id(&name), &member.report().about(now));
                                }
                            }
                            7 => {
                                if let Some(member) = registry.get(&id(&name)) {
                                    let about = member.report().about(now);
                                    registry.mark_suspect(&id(&name), &about, "evidence", now);
                                }
                            }
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut reads = 0_u64;
            while !done.load(Ordering::Relaxed) || reads == 0 {
                for name in ["x", "y"] {
                    let members = registry.find_by_model(&model(name));
                    let mut seen: Vec<_> = members.iter().map(|member| member.id()).collect();
                    seen.sort_unstable();
                    seen.dedup();
                    assert_eq!(seen.len(), members.len(), "a name stands in a list twice");
                }
                assert!(registry.list_all(now).is_sorted_by(|a, b| a.id() < b.id()));
                reads += 1;
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });

    let mut scanned: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for view in registry.list_all(now) {
        scanned
            .entry(view.item().model.clone().unwrap().into())
            .or_default()
            .push(view.id().to_string());
    }
    let mut indexed = BTreeMap::new();
    for model in registry.models() {
        let mut names: Vec<_> = registry
            .find_by_model(&model)
            .iter()
            .map(|member| member.id().to_string())
            .collect();
        names.sort_unstable();
        indexed.insert(model.to_string(), names);
    }
    assert_eq!(indexed, scanned);

    let (mut beats, mut here) = (0, BTreeSet::new());
    registry.for_each(|member| beats += member.report().beats);
    while let Ok(event) = events.try_recv() {
        let name = event.member.id().to_string();
        match event.kind {
            EventKind::Joined => assert!(here.insert(name), "joined twice"),
            EventKind::Left { .. } => {
                beats += event.report.beats;
                assert!(here.remove(&name), "left without having joined");
            }
            EventKind::Updated => assert!(here.contains(&name), "the beat of one that has left was taken"),
            EventKind::Restarted | EventKind::StateChanged { .. } | EventKind::Contended { .. } => {}
        }
    }
    assert_eq!(beats, taken.into_inner(), "a beat was lost");
    assert_eq!(here, scanned.into_values().flatten().collect());
}

#[test]
fn beats_that_race_leave_the_newest_in_place() {
    let registry = registry();
    let now = Instant::now();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let registry = &registry;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let seq = 1 + round * WRITERS + writer;
                    let outcome = registry
                        .record(probe("a", 1, seq), receipt(peer(), now))
                        .unwrap()
                        .outcome;
                    assert_ne!(outcome, Outcome::Restarted);
                    assert!(
                        registry.get(&id("a")).unwrap().report().item.seq >= seq,
                        "a newer beat was overwritten"
                    );
                }
            });
        }
    });
    assert_eq!(registry.get(&id("a")).unwrap().report().item.seq, WRITERS * ROUNDS);
    assert_eq!(registry.count_total(), 1);
}

#[test]
fn claims_from_many_threads_add_up_to_none_once_all_leases_are_dropped() {
    let registry = registry();
    registry
        .record(probe("a", 1, 1), receipt(peer(), Instant::now()))
        .unwrap();
    let member = registry.get(&id("a")).unwrap();
    let kept: Vec<_> = thread::scope(|scope| {
        let claimers: Vec<_> = (0..WRITERS)
            .map(|_| {
                scope.spawn(|| {
                    (0..ROUNDS).for_each(|_| drop(member.claim()));
                    member.claim()
                })
            })
            .collect();
        claimers.into_iter().map(|claimer| claimer.join().unwrap()).collect()
    });
    assert_eq!(u64::from(member.outstanding()), WRITERS);
    drop(kept);
    assert_eq!(member.outstanding(), 0);
}
