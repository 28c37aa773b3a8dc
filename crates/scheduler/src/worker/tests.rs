//! The wanted properties, over random fleets.

use proptest::prelude::*;

use super::*;

const FREE: Candidate = Candidate {
    standing: Standing::Ready,
    slots: 4,
    reported: 0,
    leases_at_report: 0,
    leases: 0,
    tried: false,
    record: Record::UNKNOWN,
};

const AVOID: Wish = Wish {
    suspects: Suspects::Avoid,
    prefers: None,
    seed: 0,
};

const LAST_RESORT: Wish = Wish {
    suspects: Suspects::LastResort,
    ..AVOID
};

fn pick(fleet: &[Candidate], wish: Wish) -> Result<usize, Refusal> {
    choose(fleet.len(), |index| fleet[index], wish)
}

/// A seed with which the record counts.
fn goes_by_record(seed: u64) -> bool {
    !Chance(seed).next().is_multiple_of(EXPLORE)
}

fn is_eligible(candidate: &Candidate, standing: Standing) -> bool {
    candidate.standing == standing && candidate.tier().is_some()
}

fn with_record(success: f32, first_byte_ms: f32) -> Candidate {
    Candidate {
        record: Record {
            success,
            first_byte_ms,
            is_overdue: false,
        },
        ..FREE
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    let success = prop_oneof![2 => Just(1.0_f32), 1 => 0.0..1.0_f32];
    let first_byte = prop_oneof![1 => Just(0.0_f32), 2 => 1.0..1000.0_f32];
    (success, first_byte, prop::bool::weighted(0.2)).prop_map(|(success, first_byte_ms, is_overdue)| Record {
        success,
        first_byte_ms,
        is_overdue,
    })
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let standing = prop_oneof![
        4 => Just(Standing::Ready),
        2 => Just(Standing::Suspect),
        1 => Just(Standing::Unreachable),
        1 => Just(Standing::NotReady),
        1 => Just(Standing::Lost),
    ];
    let figures = (1..4_u32, 0..5_u32, 0..3_u32, 0..4_u32);
    (standing, figures, prop::bool::weighted(0.2), any_record()).prop_map(
        |(standing, (slots, reported, leases_at_report, leases), tried, record)| Candidate {
            standing,
            slots,
            reported,
            leases_at_report,
            leases,
            tried,
            record,
        },
    )
}

fn any_fleet() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(any_candidate(), 0..40)
}

fn any_wish() -> impl Strategy<Value = Wish> {
    (any_suspects(), prop::option::of(0..50_usize), any::<u64>()).prop_map(|(suspects, prefers, seed)| Wish {
        suspects,
        prefers,
        seed,
    })
}

fn any_suspects() -> impl Strategy<Value = Suspects> {
    prop_oneof![Just(Suspects::Avoid), Just(Suspects::LastResort)]
}

proptest! {
    #[test]
    fn the_chosen_one_can_take_the_request(fleet in any_fleet(), wish in any_wish()) {
        if let Ok(index) = pick(&fleet, wish) {
            let chosen = fleet[index];
            prop_assert!(!chosen.tried && chosen.load() < chosen.slots);
            match chosen.standing {
                Standing::Ready => {}
                Standing::Suspect => {
                    prop_assert_eq!(wish.suspects, Suspects::LastResort);
                    prop_assert!(!fleet.iter().any(|c| c.standing == Standing::Ready && !c.tried));
                }
                other => prop_assert!(false, "{other:?} was chosen"),
            }
        }
    }

    #[test]
    fn nobody_is_refused_who_could_be_served(fleet in any_fleet(), wish in any_wish()) {
        if let Err(refusal) = pick(&fleet, wish) {
            prop_assert!(!fleet.iter().any(|c| is_eligible(c, Standing::Ready)));
            let ready = |c: &&Candidate| c.standing == Standing::Ready;
            let expected = if fleet.is_empty() {
                Refusal::Unknown
            } else if fleet.iter().filter(ready).any(|c| !c.tried) {
                Refusal::AllBusy
            } else if fleet.iter().any(|c| ready(&c)) {
                Refusal::AllTried
            } else if fleet.iter().any(|c| matches!(c.standing, Standing::Suspect | Standing::Unreachable)) {
                Refusal::AllSuspect
            } else if fleet.iter().any(|c| c.standing == Standing::NotReady) {
                Refusal::NoneReady
            } else {
                Refusal::AllLost
            };
            prop_assert_eq!(refusal, expected);
            if wish.suspects == Suspects::LastResort && refusal != Refusal::AllBusy {
                prop_assert!(!fleet.iter().any(|c| is_eligible(c, Standing::Suspect)));
            }
        }
    }

    #[test]
    fn who_is_overdue_is_passed_over_while_another_is_free(fleet in any_fleet(), wish in any_wish()) {
        if let Ok(index) = pick(&fleet, wish)
            && fleet[index].tier() == Some(Tier::Overdue)
        {
            prop_assert!(!fleet.iter().any(|c| c.tier() == Some(Tier::Good)));
        }
    }

    #[test]
    fn of_a_few_with_the_same_record_the_least_loaded_per_slot_is_chosen(
        mut fleet in prop::collection::vec(any_candidate(), 1..=LOOK_AT_ALL),
        record in any_record(),
        seed: u64,
    ) {
        for candidate in &mut fleet {
            candidate.record = record;
        }
        if let Ok(index) = pick(&fleet, Wish { seed, ..AVOID }) {
            let chosen = &fleet[index];
            // Products: an order without any rounding.
            let is_freer = |c: &Candidate| c.load() * chosen.slots < chosen.load() * c.slots;
            prop_assert!(!fleet.iter().any(|c| is_eligible(c, Standing::Ready) && is_freer(c)));
        }
    }

    #[test]
    fn who_is_worse_in_every_respect_is_never_chosen_before_the_better(
        better in any_record(),
        (load, slots) in (1..9_u32).prop_flat_map(|slots| (0..slots, Just(slots))),
        lead in 0..4_u32,
        (fails, delays) in (0.0..1.0_f32, 1.0..9.0_f32),
        seed in any::<u64>().prop_filter("the record counts", |seed| goes_by_record(*seed)),
    ) {
        // At least a step worse, so that they are no equals; with that, more load only makes it worse still.
        let success = (better.success - 0.0625 - fails).clamp(0.0, 1.0);
        prop_assume!(better.success - success >= 0.0625);
        let better = Candidate { slots, leases: load, record: Record { is_overdue: false, ..better }, ..FREE };
        let worse = Candidate {
            leases: load + lead,
            record: Record { success, first_byte_ms: better.record.first_byte_ms * delays, is_overdue: false },
            ..better
        };
        prop_assert_eq!(pick(&[worse, better], Wish { seed, ..AVOID }), Ok(1));
    }

    #[test]
    fn the_preferred_one_is_taken_unless_it_is_clearly_busier(
        fleet in prop::collection::vec(any_candidate(), 1..=LOOK_AT_ALL),
        prefers in 0..LOOK_AT_ALL,
        seed: u64,
    ) {
        let fleet: Vec<_> = fleet.into_iter().map(|c| Candidate { record: Record::UNKNOWN, ..c }).collect();
        if let Ok(index) = pick(&fleet, Wish { prefers: Some(prefers), seed, ..AVOID }) {
            let share = |c: &Candidate| f64::from(c.load()) / f64::from(c.slots);
            let eligible = fleet.iter().filter(|c| is_eligible(c, Standing::Ready));
            let least = eligible.map(share).fold(f64::INFINITY, f64::min);
            let wanted = fleet.get(prefers).filter(|c| is_eligible(c, Standing::Ready));
            match wanted {
                Some(wanted) if share(wanted) <= least + IMBALANCE => prop_assert_eq!(index, prefers),
                _ => prop_assert!(share(&fleet[index]) <= least),
            }
        }
    }

    #[test]
    fn among_many_at_most_so_many_are_looked_at_while_most_are_free(
        count in LOOK_AT_ALL + 1..100_000_usize,
        prefers in prop::option::of(0..100_000_usize),
        record in any_record(),
        seed: u64,
    ) {
        let mut looks = 0;
        let look = |_| {
            looks += 1;
            Candidate { record: Record { is_overdue: false, ..record }, ..FREE }
        };
        let wish = Wish { prefers, seed, ..AVOID };
        prop_assert!(choose(count, look, wish).is_ok());
        prop_assert!(looks <= MORE_DRAWS + 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_choice(fleet in any_fleet(), wish in any_wish()) {
        prop_assert_eq!(pick(&fleet, wish), pick(&fleet, wish));
    }

    #[test]
    fn a_record_of_any_figures_is_taken(
        figures in prop::collection::vec((any::<f32>(), any::<f32>()), 1..30),
        wish in any_wish(),
    ) {
        let fleet: Vec<_> = figures.into_iter().map(|(success, first_byte)| with_record(success, first_byte)).collect();
        prop_assert!(pick(&fleet, wish).is_ok());
    }

    #[test]
    fn leases_alone_never_exceed_the_slots(slots in 1..6_u32, reports in prop::collection::vec(0..6_u32, 0..12)) {
        // A lone worker under requests that never end, with reports of any kind coming in between.
        let mut worker = Candidate { slots, ..FREE };
        for (seed, reported) in reports.into_iter().enumerate() {
            while pick(&[worker], Wish { seed: seed as u64, ..AVOID }).is_ok() {
                worker.leases += 1;
            }
            prop_assert!(worker.leases <= slots);
            worker.reported = reported;
            worker.leases_at_report = worker.leases;
        }
    }

}

proptest! {
    // Each case is thousands of choices.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nobody_that_can_take_requests_starves(records in prop::collection::vec(any_record(), 2..20)) {
        // One request at a time: the others are free whenever it comes.
        let fleet: Vec<_> = records
            .into_iter()
            .map(|record| Candidate { record: Record { is_overdue: false, ..record }, ..FREE })
            .collect();
        // So many that chance alone leaves nobody out.
        let taken = shares(&fleet, fleet.len() as u64 * EXPLORE * 24);
        prop_assert!(taken.iter().all(|&n| n > 0), "{taken:?}");
    }
}

/// How many of so many requests each gets, one at a time.
fn shares(fleet: &[Candidate], requests: u64) -> Vec<u64> {
    let mut taken = vec![0; fleet.len()];
    for seed in 0..requests {
        taken[pick(fleet, Wish { seed, ..AVOID }).unwrap()] += 1;
    }
    taken
}

/// How many requests each worker answers within `ticks`, where one needs so many ticks of it, when `arrivals` come at each
/// tick and those for which nobody is free are turned away.
fn simulate(workers: &[(Candidate, u64)], arrivals: usize, ticks: u64) -> Vec<u64> {
    let mut fleet: Vec<Candidate> = workers.iter().map(|(candidate, _)| *candidate).collect();
    let mut ends: Vec<Vec<u64>> = vec![Vec::new(); fleet.len()];
    let mut taken = vec![0; fleet.len()];
    for tick in 0..ticks {
        for (candidate, ends) in fleet.iter_mut().zip(&mut ends) {
            ends.retain(|end| *end > tick);
            candidate.leases = ends.len() as u32;
        }
        for arrival in 0..arrivals {
            let seed = tick * 1000 + arrival as u64;
            if let Ok(index) = pick(&fleet, Wish { seed, ..AVOID }) {
                fleet[index].leases += 1;
                ends[index].push(tick + workers[index].1);
                taken[index] += 1;
            }
        }
    }
    taken
}

#[test]
fn equals_get_equal_shares() {
    for count in [3, 60] {
        let taken = shares(&vec![FREE; count], count as u64 * 400);
        assert!(taken.iter().all(|&n| (300..500).contains(&n)), "{taken:?}");
    }
}

#[test]
fn small_differences_of_the_record_send_nobody_all_the_traffic() {
    let taken = shares(
        &[with_record(1.0, 20.0), with_record(0.97, 35.0), with_record(1.0, 24.0)],
        1200,
    );
    assert!(taken.iter().all(|&n| (300..500).contains(&n)), "{taken:?}");
}

#[test]
fn who_fails_fast_attracts_no_traffic() {
    // It is always free, as it fails at once; the others work on what they have.
    let failing = with_record(0.1, 0.2);
    let good = Candidate {
        leases: 2,
        ..with_record(1.0, 80.0)
    };
    let taken = shares(&[good, failing, good], 3200);
    assert!(taken[1] < 3200 / 16, "{taken:?}");

    let mut many = vec![good; 200];
    many.iter_mut().step_by(10).for_each(|worker| *worker = failing);
    let taken = shares(&many, 20_000);
    let failed: u64 = taken.iter().step_by(10).sum();
    assert!(
        failed < 20_000 / 50,
        "{failed}: with the load alone it would be a fifth of all"
    );
}

#[test]
fn who_is_ten_times_slower_takes_no_more_than_its_share() {
    let fleet = [(with_record(1.0, 10.0), 1), (with_record(1.0, 100.0), 10)];
    // From one of the eight slots in use to more requests than can be answered.
    for arrivals in [1, 2, 3, 4, 6, 8] {
        let taken = simulate(&fleet, arrivals, 4000);
        let all = taken[0] + taken[1];
        assert!(taken[1] * 11 <= all + all / 20, "{arrivals}: {taken:?}");
    }
}

#[test]
fn when_all_are_needed_the_slow_one_works_as_much_as_it_can() {
    let taken = simulate(&[(with_record(1.0, 10.0), 1), (with_record(1.0, 100.0), 10)], 8, 4000);
    assert_eq!(taken[0], 4 * 4000);
    assert!(taken[1] >= 4 * 400 - 4, "{taken:?}");
}

#[test]
fn a_worker_that_has_recovered_is_found_out_and_gets_its_share_again() {
    // The average of its attempts, as a router keeps it: an eighth of the latest.
    let mut fleet = [FREE, with_record(0.0, 0.0)];
    let mut requests = 0;
    while shares(&fleet, 200)[1] < 60 {
        requests += 1;
        if pick(
            &fleet,
            Wish {
                seed: requests,
                ..AVOID
            },
        ) == Ok(1)
        {
            fleet[1].record.success += (1.0 - fleet[1].record.success) / 8.0;
        }
        assert!(requests < 4000);
    }
}

#[test]
fn among_many_a_preferred_one_that_is_free_needs_no_scan() {
    let mut looks = 0;
    let look = |index| {
        looks += 1;
        let leases = if index == 777 { 3 } else { 4 };
        Candidate { leases, ..FREE }
    };
    let wish = Wish {
        prefers: Some(777),
        ..AVOID
    };
    assert_eq!(choose(1000, look, wish), Ok(777));
    assert!(looks <= 1 + MORE_DRAWS);
}

#[test]
fn the_preferred_one_with_a_bad_record_is_left() {
    let wish = Wish {
        prefers: Some(1),
        seed: 3,
        ..AVOID
    };
    assert!(goes_by_record(wish.seed));
    assert_eq!(pick(&[FREE, FREE], wish), Ok(1));
    assert_eq!(pick(&[FREE, with_record(0.5, 0.0)], wish), Ok(0));
    assert_eq!(pick(&[with_record(1.0, 5.0), with_record(1.0, 50.0)], wish), Ok(0));
}

#[test]
fn a_report_counts_for_what_others_gave_the_worker_and_leases_for_themselves() {
    let at_report = Candidate {
        reported: 3,
        leases_at_report: 1,
        leases: 1,
        ..FREE
    };
    assert_eq!(at_report.load(), 3);
    assert_eq!(
        Candidate { leases: 0, ..at_report }.load(),
        2,
        "a lease that ended since"
    );
    assert_eq!(Candidate { leases: 2, ..at_report }.load(), 4, "a lease claimed since");
    let late = Candidate {
        reported: 0,
        leases_at_report: 2,
        leases: 2,
        ..FREE
    };
    assert_eq!(late.load(), 2, "a report that knows nothing of the leases yet");
}

#[test]
fn a_suspect_is_asked_only_when_no_untried_ready_worker_is_left() {
    let suspect = Candidate {
        standing: Standing::Suspect,
        ..FREE
    };
    let busy = Candidate { leases: 4, ..FREE };
    let tried = Candidate { tried: true, ..FREE };
    assert_eq!(pick(&[suspect, busy], LAST_RESORT), Err(Refusal::AllBusy));
    assert_eq!(pick(&[suspect, tried], LAST_RESORT), Ok(0));
    assert_eq!(pick(&[suspect, tried], AVOID), Err(Refusal::AllTried));
    assert_eq!(pick(&[suspect], AVOID), Err(Refusal::AllSuspect));
}

#[test]
fn who_cannot_be_reached_is_not_asked_even_as_a_last_resort() {
    let unreachable = Candidate {
        standing: Standing::Unreachable,
        ..FREE
    };
    let suspect = Candidate {
        standing: Standing::Suspect,
        ..FREE
    };
    assert_eq!(pick(&[unreachable], LAST_RESORT), Err(Refusal::AllSuspect));
    assert_eq!(pick(&[unreachable, suspect], LAST_RESORT), Ok(1));
}
