//! The wanted properties, over random fleets.

use proptest::prelude::*;

use super::{
    Choice, Criterion, Decision, Device, Host, ModelNeed, Outcome, Problem, Strategy as Placement, Tenant, Verdict,
    decide,
};
use crate::Need;

const GIB: u64 = 1 << 30;

fn any_need() -> impl Strategy<Value = Need> {
    (0..9_u64, 1..3_u64, 1..5_u64, 0..5_u64).prop_map(|(fixed, per_block, least, more)| Need {
        fixed_bytes: fixed * GIB,
        kv_bytes_per_token: per_block * GIB / 32,
        block_tokens: 16,
        least_tokens: least * 16,
        wanted_tokens: (least + more) * 16,
    })
}

fn any_tenant() -> impl Strategy<Value = Tenant> {
    (
        prop_oneof![Just("wanted"), Just("a"), Just("b")],
        0..8_u64,
        prop::option::weighted(0.7, 0..4_u64),
        prop::bool::weighted(0.2),
        any::<bool>(),
    )
        .prop_map(|(model, gib, idle_ms, pinned, is_replica)| Tenant {
            worker: String::new(),
            model: model.into(),
            bytes: gib * GIB,
            idle_ms,
            pinned,
            is_replica,
        })
}

fn any_device() -> impl Strategy<Value = Device> {
    let closed = prop::option::weighted(0.15, Just("its owner is at work".to_owned()));
    let tenants = prop::collection::vec(any_tenant(), 0..6);
    (any::<bool>(), 0..12_u64, closed, tenants).prop_map(|(is_gpu, free, closed, tenants)| {
        let held: u64 = tenants.iter().map(|tenant| tenant.bytes).sum();
        Device {
            id: String::new(),
            is_gpu,
            // Part of it may be held by somebody who is no worker.
            total_bytes: free * GIB + held + GIB / 2,
            free_bytes: free * GIB,
            closed,
            tenants,
        }
    })
}

fn any_host() -> impl Strategy<Value = Host> {
    let closed = prop::option::weighted(0.15, Just("drained by the operator".to_owned()));
    let devices = prop::collection::vec(any_device(), 0..4);
    (closed, any::<bool>(), devices).prop_map(|(closed, has_file, devices)| Host {
        id: String::new(),
        closed,
        has_file,
        devices,
    })
}

fn any_problem() -> impl Strategy<Value = Problem> {
    let strategy = prop_oneof![Just(Placement::Spread), Just(Placement::Pack)];
    let hosts = prop::collection::vec(any_host(), 0..5);
    (any_need(), any_need(), strategy, prop::bool::weighted(0.8), hosts).prop_map(
        |(cpu, gpu, strategy, may_evict, mut hosts)| {
            for (number, host) in hosts.iter_mut().enumerate() {
                host.id = format!("host-{number}");
                for (place, device) in host.devices.iter_mut().enumerate() {
                    device.id = format!("device-{place}");
                    for (count, tenant) in device.tenants.iter_mut().enumerate() {
                        tenant.worker = format!("worker-{number}-{place}-{count}");
                    }
                }
            }
            Problem {
                model: "wanted".into(),
                need: ModelNeed { cpu, gpu },
                strategy,
                may_evict,
                hosts,
            }
        },
    )
}

fn devices(problem: &Problem) -> impl Iterator<Item = (&Host, &Device)> {
    let hosts = problem.hosts.iter();
    hosts.flat_map(|host| host.devices.iter().map(move |device| (host, device)))
}

fn chosen<'a>(problem: &'a Problem, choice: &Choice) -> (&'a Host, &'a Device) {
    devices(problem)
        .find(|(host, device)| host.id == choice.host && device.id == choice.device)
        .expect("the chosen device is one of those given")
}

fn is_open(host: &Host, device: &Device) -> bool {
    host.closed.is_none() && device.closed.is_none()
}

fn need<'a>(problem: &'a Problem, device: &Device) -> &'a Need {
    if device.is_gpu {
        &problem.need.gpu
    } else {
        &problem.need.cpu
    }
}

fn least(problem: &Problem, device: &Device) -> u64 {
    let need = need(problem, device);
    need.bytes(need.least_tokens)
}

fn may_go(problem: &Problem, tenant: &Tenant) -> bool {
    problem.may_evict && tenant.idle_ms.is_some() && !tenant.pinned && tenant.model != problem.model
}

/// Every set of workers on the device whose eviction is allowed and would suffice.
fn sufficient_sets<'a>(problem: &Problem, device: &'a Device) -> Vec<Vec<&'a Tenant>> {
    let allowed: Vec<_> = device.tenants.iter().filter(|tenant| may_go(problem, tenant)).collect();
    let subsets = (0..1_u32 << allowed.len()).map(|mask| {
        let members = allowed.iter().enumerate().filter(|(place, _)| mask >> place & 1 == 1);
        members.map(|(_, tenant)| *tenant).collect::<Vec<_>>()
    });
    let suffices = |set: &Vec<&Tenant>| {
        let freed: u64 = set.iter().map(|tenant| tenant.bytes).sum();
        device.free_bytes + freed >= least(problem, device)
    };
    subsets.filter(suffices).collect()
}

/// How dear a set is, if of the same size: its members' merits, the greatest first.
fn merits(set: &[&Tenant]) -> Vec<(bool, Option<u64>)> {
    let mut merits: Vec<_> = set.iter().map(|tenant| (tenant.is_replica, tenant.idle_ms)).collect();
    merits.sort_unstable_by(|a, b| b.cmp(a));
    merits
}

proptest! {
    #[test]
    fn what_is_granted_fits_on_an_open_device(problem in any_problem()) {
        if let Some(choice) = decide(&problem).choice {
            let (host, device) = chosen(&problem, &choice);
            prop_assert!(is_open(host, device));
            let gone = device.tenants.iter().filter(|tenant| choice.evict.contains(&tenant.worker));
            let room = device.free_bytes + gone.map(|tenant| tenant.bytes).sum::<u64>();
            prop_assert!(choice.bytes <= room.min(device.total_bytes));
            let need = need(&problem, device);
            prop_assert_eq!(choice.bytes, need.bytes(choice.kv_tokens));
            prop_assert!((need.least_tokens..=need.wanted_tokens).contains(&choice.kv_tokens));
            // Not a block more would have fitted.
            let more = need.bytes(choice.kv_tokens + need.block_tokens);
            prop_assert!(choice.kv_tokens == need.wanted_tokens || more > room.min(device.total_bytes));
        }
    }

    #[test]
    fn only_idle_workers_of_other_models_on_the_chosen_device_go_and_none_that_is_pinned(problem in any_problem()) {
        if let Some(choice) = decide(&problem).choice {
            let (_, device) = chosen(&problem, &choice);
            for worker in &choice.evict {
                let tenant = device.tenants.iter().find(|tenant| tenant.worker == *worker);
                prop_assert!(tenant.is_some_and(|tenant| may_go(&problem, tenant)));
            }
        }
    }

    #[test]
    fn nobody_goes_where_the_model_fits_without_and_else_the_fewest_that_suffice(problem in any_problem()) {
        if let Some(choice) = decide(&problem).choice {
            let open: Vec<_> = devices(&problem).filter(|(host, device)| is_open(host, device)).collect();
            let of_kind = |is_gpu: bool| open.iter().filter(move |(_, device)| device.is_gpu == is_gpu);
            let fewest = |is_gpu| of_kind(is_gpu)
                .flat_map(|(_, device)| sufficient_sets(&problem, device))
                .map(|set| set.len())
                .min();
            let is_gpu = chosen(&problem, &choice).1.is_gpu;
            prop_assert_eq!(Some(choice.evict.len()), fewest(is_gpu));
            if !choice.evict.is_empty() {
                prop_assert_ne!(fewest(!is_gpu), Some(0));
            }
        }
    }

    #[test]
    fn of_those_who_may_go_spare_ones_go_first_and_then_the_longest_idle(problem in any_problem()) {
        if let Some(choice) = decide(&problem).choice {
            let (_, device) = chosen(&problem, &choice);
            let gone: Vec<_> = device.tenants.iter().filter(|tenant| choice.evict.contains(&tenant.worker)).collect();
            let as_small = sufficient_sets(&problem, device).into_iter().filter(|set| set.len() == gone.len());
            prop_assert_eq!(Some(merits(&gone)), as_small.map(|set| merits(&set)).max());
        }
    }

    #[test]
    fn what_can_be_placed_is_placed(problem in any_problem()) {
        let could = devices(&problem)
            .any(|(host, device)| is_open(host, device) && !sufficient_sets(&problem, device).is_empty());
        prop_assert_eq!(decide(&problem).choice.is_some(), could);
    }

    #[test]
    fn a_gpu_goes_before_the_main_processor_and_then_a_host_with_the_file(problem in any_problem()) {
        let problem = Problem { may_evict: false, strategy: Placement::Pack, ..problem };
        if let Some(choice) = decide(&problem).choice {
            let (host, device) = chosen(&problem, &choice);
            for (other, rival) in devices(&problem) {
                if is_open(other, rival) && rival.free_bytes >= least(&problem, rival) {
                    prop_assert!(device.is_gpu || !rival.is_gpu);
                    prop_assert!(host.has_file || !other.has_file || rival.is_gpu != device.is_gpu);
                }
            }
        }
    }

    #[test]
    fn spread_takes_the_largest_free_share_and_pack_the_tightest_gap(
        sizes in prop::collection::vec((8..64_u64, 0..8_u64), 1..8),
        strategy in prop_oneof![Just(Placement::Spread), Just(Placement::Pack)],
    ) {
        let hosts = sizes.iter().enumerate().map(|(number, (total, taken))| host(number, vec![gpu(0, *total, total - taken)]));
        let problem = Problem { strategy, ..problem(6, hosts.collect()) };
        if let Some(choice) = decide(&problem).choice {
            let (_, device) = chosen(&problem, &choice);
            let fits = devices(&problem).map(|(_, device)| device).filter(|device| device.free_bytes >= 6 * GIB);
            for rival in fits {
                match strategy {
                    Placement::Spread => prop_assert!(
                        device.free_bytes / GIB * rival.total_bytes >= rival.free_bytes / GIB * device.total_bytes
                    ),
                    Placement::Pack => prop_assert!(device.free_bytes <= rival.free_bytes),
                }
            }
        }
    }

    #[test]
    fn every_device_has_its_verdict_with_its_figures(problem in any_problem()) {
        let Decision { choice, verdicts } = decide(&problem);
        prop_assert_eq!(verdicts.len(), devices(&problem).count());
        for (verdict, (host, device)) in verdicts.iter().zip(devices(&problem)) {
            prop_assert_eq!((&verdict.host, &verdict.device), (&host.id, &device.id));
            prop_assert_eq!(verdict.needs_bytes, least(&problem, device));
            prop_assert_eq!((verdict.free_bytes, verdict.total_bytes), (device.free_bytes, device.total_bytes));
            let is_choice = choice.as_ref().is_some_and(|c| c.host == host.id && c.device == device.id);
            let fits = device.free_bytes >= verdict.needs_bytes;
            match &verdict.outcome {
                Outcome::Chosen => prop_assert!(is_choice),
                Outcome::Fits => prop_assert!(fits && is_open(host, device)),
                Outcome::FitsAfterEviction { evict, .. } => prop_assert!(!fits && !evict.is_empty()),
                Outcome::TooSmall { .. } => prop_assert!(!fits && sufficient_sets(&problem, device).is_empty()),
                Outcome::Closed { .. } => prop_assert!(!is_open(host, device)),
            }
            prop_assert_eq!(is_choice, verdict.outcome == Outcome::Chosen);
            let could = matches!(verdict.outcome, Outcome::Fits | Outcome::FitsAfterEviction { .. });
            prop_assert_eq!(verdict.lost_by.is_some(), could);
        }
    }

    #[test]
    fn a_decision_can_be_replayed_from_its_record(problem in any_problem()) {
        let decision = decide(&problem);
        let record = serde_json::to_string(&(&problem, &decision)).unwrap();
        let (again, recorded): (Problem, Decision) = serde_json::from_str(&record).unwrap();
        prop_assert_eq!(&recorded, &decision);
        prop_assert_eq!(decide(&again), decision);
    }

    #[test]
    fn the_order_of_the_hosts_decides_only_among_equals(problem in any_problem()) {
        let mut reversed = problem.clone();
        reversed.hosts.reverse();
        let (choice, other) = (decide(&problem), decide(&reversed));
        prop_assert_eq!(choice.choice.is_some(), other.choice.is_some());
        if let (Some(a), Some(b)) = (&choice.choice, &other.choice)
            && a.host != b.host
        {
            let lost_by = |decision: &Decision, at: &Choice| {
                let verdicts = decision.verdicts.iter();
                let mut verdicts = verdicts.filter(|v| v.host == at.host && v.device == at.device);
                verdicts.next().and_then(|verdict| verdict.lost_by)
            };
            prop_assert_eq!(lost_by(&choice, b), Some(Criterion::Order));
            prop_assert_eq!(lost_by(&other, a), Some(Criterion::Order));
        }
    }

    #[test]
    fn any_figures_have_a_decision(figures in prop::collection::vec(any::<u64>(), 9), idle_ms in any::<u64>()) {
        let need = Need {
            fixed_bytes: figures[0],
            kv_bytes_per_token: figures[1],
            block_tokens: figures[2] % 3,
            least_tokens: figures[3],
            wanted_tokens: figures[4],
        };
        let tenant = Tenant { bytes: figures[5], ..tenant("w", "a", 0, idle_ms) };
        let device = Device {
            total_bytes: figures[7],
            free_bytes: figures[8],
            tenants: vec![tenant.clone(), tenant],
            ..gpu(0, 0, 0)
        };
        let problem = Problem { need: ModelNeed { cpu: need, gpu: need }, ..problem(1, vec![host(0, vec![device])]) };
        prop_assert_eq!(decide(&problem).verdicts.len(), 1);
    }
}

/// A model that takes so many GiB, cache and all.
fn problem(gib: u64, hosts: Vec<Host>) -> Problem {
    let need = Need {
        fixed_bytes: (gib - 1) * GIB,
        kv_bytes_per_token: GIB / 1024,
        block_tokens: 32,
        least_tokens: 1024,
        wanted_tokens: 1024,
    };
    Problem {
        model: "wanted".into(),
        need: ModelNeed { cpu: need, gpu: need },
        strategy: Placement::Spread,
        may_evict: true,
        hosts,
    }
}

fn host(number: usize, devices: Vec<Device>) -> Host {
    Host {
        id: format!("box-{number}"),
        closed: None,
        has_file: true,
        devices,
    }
}

fn gpu(number: usize, total: u64, free: u64) -> Device {
    Device {
        id: format!("cuda:{number}"),
        is_gpu: true,
        total_bytes: total * GIB,
        free_bytes: free * GIB,
        closed: None,
        tenants: Vec::new(),
    }
}

fn tenant(worker: &str, model: &str, gib: u64, idle_ms: u64) -> Tenant {
    Tenant {
        worker: worker.into(),
        model: model.into(),
        bytes: gib * GIB,
        idle_ms: Some(idle_ms),
        pinned: false,
        is_replica: false,
    }
}

fn evicted(problem: &Problem) -> Vec<String> {
    decide(problem).choice.expect("it is placed").evict
}

#[test]
fn one_large_worker_goes_rather_than_two_small_ones_and_of_two_large_ones_the_longer_idle() {
    let tenants = vec![
        tenant("small", "a", 3, 900),
        tenant("lately", "b", 6, 10),
        tenant("long", "c", 7, 500),
        tenant("tiny", "d", 1, 999),
    ];
    let full = |tenants| {
        problem(
            6,
            vec![host(
                0,
                vec![Device {
                    tenants,
                    ..gpu(0, 24, 0)
                }],
            )],
        )
    };
    assert_eq!(evicted(&full(tenants.clone())), ["long"]);
    let mut spare = tenants;
    spare[1].is_replica = true;
    assert_eq!(evicted(&full(spare)), ["lately"], "its model goes on elsewhere");
}

#[test]
fn a_second_worker_goes_to_another_host_although_the_file_is_here() {
    let serving = Device {
        tenants: vec![tenant("first", "wanted", 6, 0)],
        ..gpu(0, 24, 18)
    };
    let elsewhere = Host {
        has_file: false,
        ..host(1, vec![gpu(0, 24, 10)])
    };
    let mut problem = problem(6, vec![host(0, vec![serving, gpu(1, 24, 24)]), elsewhere]);
    let decision = decide(&problem);
    assert_eq!(decision.choice.unwrap().host, "box-1");
    assert_eq!(decision.verdicts[0].lost_by, Some(Criterion::OtherHost));
    problem.strategy = Placement::Pack;
    assert_eq!(decide(&problem).choice.unwrap().host, "box-0");
}

#[test]
fn a_model_never_takes_the_place_of_its_own_worker() {
    let tenants = vec![tenant("first", "wanted", 6, 5000)];
    let full = problem(
        6,
        vec![host(
            0,
            vec![Device {
                tenants,
                ..gpu(0, 8, 2)
            }],
        )],
    );
    assert_eq!(decide(&full).choice, None);
}

#[test]
fn the_short_form_has_a_clause_for_each_of_the_first_devices() {
    let busy = Device {
        tenants: vec![
            Tenant {
                idle_ms: None,
                ..tenant("w1", "a", 20, 0)
            },
            Tenant {
                pinned: true,
                ..tenant("w2", "b", 1, 5)
            },
            tenant("w3", "c", 1, 5),
        ],
        ..gpu(0, 24, 2)
    };
    let drained = Host {
        closed: Some("drained by the operator".into()),
        ..host(1, vec![gpu(0, 24, 24)])
    };
    let small = host(2, (0..5).map(|number| gpu(number, 4, 4)).collect());
    assert_eq!(
        decide(&problem(6, vec![host(0, vec![busy.clone()]), drained, small])).to_string(),
        "box-0 cuda:0: too little room, even without idle workers, which hold 1024 MiB, 1 busy and 1 pinned there (it takes \
         6144 MiB, 2048 of 24576 MiB are free); box-1 cuda:0: drained by the operator; box-2 cuda:0: too little room (it \
         takes 6144 MiB, 4096 of 4096 MiB are free); box-2 cuda:1: too little room (it takes 6144 MiB, 4096 of 4096 MiB \
         are free); box-2 cuda:2: too little room (it takes 6144 MiB, 4096 of 4096 MiB are free); and 2 devices more"
    );
    assert_eq!(decide(&problem(6, Vec::new())).to_string(), "there is no device");
    let decision = decide(&problem(3, vec![host(0, vec![busy, gpu(1, 2, 2)])]));
    assert_eq!(decision.to_string(), "box-0 cuda:0 in the place of w3");
}

#[test]
fn the_record_of_a_verdict_is_flat() {
    let full = Device {
        tenants: vec![tenant("w3", "c", 6, 5)],
        ..gpu(0, 8, 2)
    };
    let decision = decide(&problem(6, vec![host(0, vec![full, gpu(1, 8, 8)])]));
    let verdict: &Verdict = &decision.verdicts[0];
    assert_eq!(
        serde_json::to_value(verdict).unwrap(),
        serde_json::json!({
            "host": "box-0", "device": "cuda:0", "outcome": "fits_after_eviction", "evict": ["w3"],
            "frees_bytes": 6 * GIB, "lost_by": "no_eviction", "needs_bytes": 6 * GIB, "free_bytes": 2 * GIB,
            "total_bytes": 8 * GIB,
        })
    );
}
