use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).expect("a test asks for threads")).expect("threads for a test")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn each_task_runs_exactly_once(threads in 1usize..6, jobs in prop::collection::vec(0usize..300, 1..20)) {
        let pool = pool(threads);
        for tasks in jobs {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(tasks, &|task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            prop_assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn each_worker_runs_once(threads in 1usize..6, jobs in 1usize..20) {
        let pool = pool(threads);
        prop_assert_eq!(pool.threads(), threads);
        for _ in 0..jobs {
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|worker| {
                counts[worker].fetch_add(1, Ordering::Relaxed);
            });
            prop_assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn all_workers_of_a_run_are_there_at_the_same_time() {
    let pool = pool(3);
    let barrier = std::sync::Barrier::new(3);
    pool.run(&|_worker| {
        barrier.wait();
    });
}

#[test]
fn one_task_or_one_thread_runs_on_the_caller() {
    let here = thread::current().id();
    pool(3).for_each(1, &|_task| assert_eq!(thread::current().id(), here));
    pool(1).for_each(9, &|_task| assert_eq!(thread::current().id(), here));
    pool(1).run(&|worker| assert_eq!((worker, thread::current().id()), (0, here)));
}

#[test]
fn the_caller_is_worker_0_and_the_threads_are_named_by_their_numbers() {
    let names = Mutex::new(BTreeSet::new());
    let here = thread::current().id();
    pool(3).run(&|worker| {
        if worker == 0 {
            assert_eq!(thread::current().id(), here);
        } else {
            lock(&names).insert((worker, thread::current().name().map(str::to_owned)));
        }
    });
    let expected = [1, 2].map(|worker| (worker, Some(format!("model-{worker}"))));
    assert_eq!(lock(&names).clone(), BTreeSet::from(expected));
}

#[test]
fn a_panic_on_any_worker_reaches_the_caller_after_all_have_finished() {
    let pool = pool(3);
    for culprit in 0..3 {
        let finished = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|worker| {
                assert_ne!(worker, culprit, "worker {culprit} fails");
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }));
        let panic = result.expect_err("the panic goes on");
        let text = panic.downcast_ref::<String>().expect("a panic with a text");
        assert!(text.contains(&format!("worker {culprit} fails")), "{text}");
        assert_eq!(finished.load(Ordering::Relaxed), 2);
    }
    let after = AtomicUsize::new(0);
    pool.run(&|_worker| {
        after.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(after.load(Ordering::Relaxed), 3, "the pool works on");
}

#[test]
fn a_job_within_a_job_is_refused_instead_of_waiting_for_ever() {
    let pool = pool(2);
    for culprit in 0..2 {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|worker| {
                if worker == culprit {
                    pool.run(&|_worker| ());
                }
            });
        }));
        let panic = result.expect_err("the inner job is refused");
        let text = panic.downcast_ref::<&str>().expect("a panic with a text");
        assert!(text.contains("dispatched another job"), "{text}");
    }
}

#[test]
fn callers_on_different_threads_take_turns() {
    let pool = pool(2);
    let (inside, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..50 {
                    pool.run(&|worker| {
                        if worker == 0 {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one job at a time");
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 3 * 50 * 2);
}

#[test]
fn idle_workers_park_and_wake_for_the_next_job() {
    let pool = pool(3);
    for _ in 0..3 {
        while !pool.shared.parked.iter().all(|parked| parked.0.load(Ordering::SeqCst)) {
            thread::yield_now();
        }
        let count = AtomicUsize::new(0);
        pool.run(&|_worker| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }
}

#[test]
fn a_caller_that_waits_long_parks_and_is_woken() {
    let pool = pool(2);
    pool.run(&|worker| {
        if worker == 1 {
            while pool.shared.state.0.load(Ordering::SeqCst) & word::CALLER_PARKS == 0 {
                thread::yield_now();
            }
        }
    });
}

#[test]
fn numbers_of_jobs_wrap_around() {
    let pool = pool(2);
    pool.shared
        .state
        .0
        .store(u64::from(u32::MAX - 1) << 32 | word::CLOSED, Ordering::SeqCst);
    for _ in 0..4 {
        let count = AtomicUsize::new(0);
        pool.run(&|_worker| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
