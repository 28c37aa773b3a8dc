//! What the registry costs by its number of members: a beat, a choice, a snapshot, a sweep.
//!
//! A beat and a choice must not grow with the members by more than a factor of three from 100 to 100,000.

mod fleet;

use std::{hint::black_box, time::Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use heartbeat_registry::{Liveness, Member};
use scheduler::{Candidate, Record, Standing, Suspects, Wish};
use worker_contract::WorkerHeartbeat;

use crate::fleet::SIZES;

/// So few inputs that they are in the cache when they are used, as a beat is that has just been read.
const BATCH: BatchSize = BatchSize::NumIterations(32);

/// Numbers below `count` in an order that no cache foresees.
fn random(count: usize) -> impl FnMut() -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % count
    }
}

fn record(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    for members in SIZES {
        let registry = fleet::registry(members);
        // Somebody follows the events, as the queen does.
        let _follower = registry.subscribe();
        let mut next = random(members);
        let mut seq = 1;
        group.bench_function(BenchmarkId::from_parameter(members), |bencher| {
            let input = || {
                seq += 1;
                (fleet::beat(next(), seq), fleet::receipt())
            };
            bencher.iter_batched(input, |(beat, receipt)| registry.record(beat, receipt), BATCH);
        });
    }
}

/// The queen's choice of a worker for a request: those of the model, the scheduler among them, and the claim.
fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for members in SIZES {
        let registry = fleet::registry(members);
        let mut next = random(members);
        group.bench_function(BenchmarkId::from_parameter(members), |bencher| {
            let input = || (fleet::model(next()), next() as u64);
            bencher.iter_batched(
                input,
                |(model, seed)| {
                    let workers = registry.find_by_model(&model);
                    let now = Instant::now();
                    let look = |place| candidate(workers.get(place).expect("a place below the length"), now);
                    let wish = Wish {
                        suspects: Suspects::Avoid,
                        prefers: None,
                        seed,
                    };
                    let place = scheduler::choose(workers.len(), look, wish).expect("a free worker");
                    // Given back at once: kept for a batch, the claims would fill the small fleet.
                    drop(workers.get(place).map(Member::claim));
                },
                BATCH,
            );
        });
    }
}

fn candidate(worker: &Member<WorkerHeartbeat>, now: Instant) -> Candidate {
    let report = worker.report();
    Candidate {
        standing: match worker.liveness(now) {
            Liveness::Online => Standing::Ready,
            _ => Standing::Lost,
        },
        slots: report.item.worker.slots,
        reported: report.item.load.running,
        leases_at_report: report.outstanding,
        leases: worker.outstanding(),
        tried: false,
        record: Record::UNKNOWN,
    }
}

fn snapshot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot");
    for members in SIZES {
        let registry = fleet::registry(members);
        group.throughput(Throughput::Elements(members as u64));
        group.bench_function(BenchmarkId::from_parameter(members), |bencher| {
            bencher.iter(|| black_box(registry.list_all(Instant::now())));
        });
    }
}

fn sweep(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sweep");
    for members in SIZES {
        let registry = fleet::registry(members);
        group.throughput(Throughput::Elements(members as u64));
        group.bench_function(BenchmarkId::from_parameter(members), |bencher| {
            bencher.iter(|| black_box(registry.cleanup_stale(Instant::now(), false)));
        });
    }
}

criterion_group!(benches, record, pick, snapshot, sweep);
criterion_main!(benches);
