//! Jobs, one by one and as a whole.

use futures_util::StreamExt;
use hive_contract::{JobEvent, JobProgress};
use serde_json::json;

use super::*;
use crate::history::{EVENT_LIMIT, MESSAGES_LIMIT, PROGRESS_PAUSE};

fn none_yet() -> Jobs {
    Jobs::new(|_, _| {})
}

fn step(phase: &str, done: u64) -> JobProgress {
    JobProgress {
        phase: phase.into(),
        done,
        total: Some(1000),
        unit: "bytes".into(),
        per_second: None,
        eta_s: None,
        source: None,
    }
}

async fn hang(job: Arc<Job>) -> Result<Value, Failure> {
    job.cancelled().cancelled().await;
    Err(Failure::Cancelled)
}

/// A job that is over.
async fn finished(jobs: &Jobs) -> Arc<Job> {
    let work = |_| async { Ok(Value::Null) };
    let job = jobs.start(Operation::ModelList {}, work).unwrap();
    all(&job, None).await;
    job
}

async fn all(job: &Job, after: Option<u64>) -> Vec<JobEvent> {
    job.events(after).collect().await
}

#[tokio::test]
async fn a_late_reader_gets_the_whole_story_from_the_start() {
    let jobs = none_yet();
    let job = jobs
        .start(Operation::ModelList {}, |job| async move {
            job.say("listing");
            Ok(json!({"models": []}))
        })
        .unwrap();
    let first = all(&job, None).await;
    assert_eq!(first, all(&job, None).await);
    let states: Vec<_> = first.iter().map(|event| event.state).collect();
    assert_eq!(states, [JobState::Running, JobState::Running, JobState::Succeeded]);
    assert_eq!(first[1].message.as_deref(), Some("listing"));
    assert_eq!(first[2].result, Some(json!({"models": []})));
    assert_eq!(first.iter().map(|event| event.seq).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(all(&job, Some(1)).await, first[2..]);
}

#[tokio::test]
async fn a_job_runs_without_a_listener_and_a_cancelled_one_ends_as_cancelled() {
    let jobs = none_yet();
    let job = jobs
        .start(Operation::ModelList {}, |job| async move {
            job.cancelled().cancelled().await;
            Err(Failure::Cancelled)
        })
        .unwrap();
    assert_eq!(job.state(), JobState::Running);
    job.cancelled().cancel();
    assert_eq!(all(&job, None).await.last().unwrap().state, JobState::Cancelled);
}

#[tokio::test]
async fn a_job_that_panics_has_failed() {
    let jobs = none_yet();
    let job = jobs
        .start(Operation::ModelList {}, |_| async { panic!("a mistake of ours") })
        .unwrap();
    let last = all(&job, None).await.pop().unwrap();
    assert_eq!(last.state, JobState::Failed);
    assert!(!last.error.unwrap().message.contains("a mistake of ours"));
}

#[tokio::test(start_paused = true)]
async fn the_progress_of_a_phase_leaves_one_event_and_fast_progress_is_thinned_out() {
    let job = Job::new(Operation::ModelList {});
    let told = |done| {
        let before = job.history.borrow().next_seq();
        job.progress(step("download", done));
        job.history.borrow().next_seq() != before
    };
    assert!(told(1));
    assert!(!told(2), "too fast");
    tokio::time::advance(PROGRESS_PAUSE).await;
    assert!(told(3));
    assert!(!told(3), "nothing new");
    assert!(told(1000), "the end of a phase is always told");
    job.progress(step("verify", 0));
    job.end(Ok(Value::Null));
    let phases: Vec<_> = all(&job, None)
        .await
        .into_iter()
        .filter_map(|event| event.progress)
        .map(|progress| (progress.phase, progress.done))
        .collect();
    assert_eq!(phases, [("download".to_owned(), 1000), ("verify".to_owned(), 0)]);
}

#[tokio::test(start_paused = true)]
async fn pieces_stay_and_the_progress_between_two_of_them_does_not() {
    let job = Job::new(Operation::ModelList {});
    for number in 0..3 {
        job.say_piece(number.to_string(), step("answer", 10 * number));
        job.progress(step("answer", 10 * number + 5));
        tokio::time::advance(PROGRESS_PAUSE).await;
    }
    let told = job
        .history
        .borrow()
        .last()
        .map(|event| (event.seq, event.message.clone()));
    assert_eq!(told, Some((6, None)), "progress is told meanwhile");
    job.end(Ok(Value::Null));
    let told: Vec<_> = all(&job, None)
        .await
        .into_iter()
        .filter_map(|event| Some((event.message, event.progress?.done)))
        .collect();
    let piece = |number: u64| Some(number.to_string());
    assert_eq!(told, [(piece(0), 0), (piece(1), 10), (piece(2), 20), (None, 25)]);
}

#[tokio::test]
async fn the_history_of_a_job_is_bounded_and_keeps_its_end() {
    let job = Job::new(Operation::ModelList {});
    for number in 0..2 * EVENT_LIMIT {
        job.say(number.to_string());
    }
    job.end(Ok(Value::Null));
    let events = all(&job, None).await;
    assert_eq!(events.len(), EVENT_LIMIT);
    assert_eq!(events.last().unwrap().state, JobState::Succeeded);
}

#[tokio::test]
async fn a_failure_names_the_step_that_it_happened_in() {
    let fails = async |begin: fn(&Job)| {
        let job = Job::new(Operation::ModelList {});
        begin(&job);
        job.end(Err(ApiError::new(
            ErrorKind::Internal,
            "failed to write x: the disk is full",
        )
        .into()));
        all(&job, None).await.pop().unwrap().error.unwrap().message
    };
    let full = "write x: the disk is full";
    assert_eq!(fails(|_| {}).await, format!("failed in step `model_list`: {full}"));
    assert_eq!(
        fails(|job| job.step("place")).await,
        format!("failed in step `place`: {full}")
    );
    let downloads = |job: &Job| {
        job.step("resolve");
        job.progress(step("download", 1));
    };
    assert_eq!(fails(downloads).await, format!("failed in step `download`: {full}"));
}

#[tokio::test]
async fn one_job_too_many_is_refused_until_another_has_ended() {
    let jobs = none_yet();
    let start = || jobs.start(Operation::ModelList {}, hang);
    let first = start().unwrap();
    for _ in 1..RUNNING_LIMIT {
        start().unwrap();
    }
    assert_eq!(start().unwrap_err().kind(), ErrorKind::RateLimited);
    first.cancelled().cancel();
    all(&first, None).await;
    start().unwrap();
    assert_eq!(jobs.list().len(), RUNNING_LIMIT + 1);
}

#[tokio::test]
async fn jobs_of_which_there_may_be_many_do_not_keep_others_out() {
    let jobs = none_yet();
    let follow = || Operation::WorkerLogs {
        worker_id: shared_contract::WorkerId::new("w").unwrap(),
        lines: None,
        follow: true,
    };
    for _ in 0..FOLLOWERS.limit {
        jobs.start(follow(), hang).unwrap();
    }
    let refused = jobs.start(follow(), hang).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::RateLimited);
    assert!(refused.to_string().contains("16 jobs follow a log"), "{refused}");
    jobs.start(Operation::ModelList {}, hang).unwrap();
}

#[tokio::test]
async fn of_many_jobs_that_are_over_the_oldest_are_forgotten_and_never_one_that_runs() {
    let jobs = none_yet();
    let running = jobs.start(Operation::ModelList {}, hang).unwrap();
    let mut over = Vec::new();
    for _ in 0..KEPT + 2 {
        over.push(finished(&jobs).await.id().to_owned());
    }
    let kept: Vec<_> = jobs.list().iter().rev().map(|job| job.id().to_owned()).collect();
    let expected: Vec<_> = std::iter::once(running.id().to_owned())
        .chain(over.drain(2..))
        .collect();
    assert_eq!(kept, expected);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_over_is_forgotten_after_a_day_and_one_that_runs_is_not() {
    let jobs = none_yet();
    let running = jobs.start(Operation::ModelList {}, hang).unwrap();
    let over = finished(&jobs).await;
    tokio::time::advance(RETENTION - Duration::from_secs(1)).await;
    assert!(jobs.get(over.id()).is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(jobs.get(over.id()).is_none());
    assert!(jobs.get(running.id()).is_some());
}

#[tokio::test]
async fn of_long_messages_fewer_are_remembered_and_always_the_last() {
    let jobs = none_yet();
    let job = jobs
        .start(Operation::ModelList {}, |job| async move {
            for number in 0..8 {
                job.say(format!("{number}{}", "x".repeat(MESSAGES_LIMIT / 4)));
            }
            Ok(Value::Null)
        })
        .unwrap();
    let events = all(&job, None).await;
    let first = |event: &JobEvent| event.message.as_deref().and_then(|message| message.chars().next());
    let remembered: String = all(&job, None).await.iter().filter_map(first).collect();
    assert_eq!(remembered, "567");
    assert_eq!(events.last().unwrap().state, JobState::Succeeded);
}

#[tokio::test]
async fn of_jobs_with_long_histories_fewer_are_remembered() {
    let jobs = none_yet();
    let mut over = Vec::new();
    for _ in 0..=KEPT_BYTES / MESSAGES_LIMIT {
        let work = |job: Arc<Job>| async move {
            job.say("x".repeat(MESSAGES_LIMIT - 8));
            Ok(Value::Null)
        };
        let job = jobs.start(Operation::ModelList {}, work).unwrap();
        all(&job, None).await;
        over.push(job.id().to_owned());
    }
    assert!(jobs.get(&over[0]).is_none());
    assert!(over[1..].iter().all(|id| jobs.get(id).is_some()));
}

#[tokio::test]
async fn the_error_of_another_daemons_job_is_told_as_it_is() {
    let job = Job::new(Operation::ModelList {});
    let theirs = ErrorKind::NoCapacity.object("failed in step `place`: no room", None);
    job.end(Err(Failure::Told(theirs.clone())));
    assert_eq!(all(&job, None).await.pop().unwrap().error, Some(theirs));
}

#[tokio::test]
async fn who_counts_hears_of_each_job_that_is_over_and_how_it_ended() {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let jobs = Jobs::new(move |order: &Operation, state| told.try_send((order.clone(), state)).unwrap());
    finished(&jobs).await;
    assert_eq!(heard.recv().await, Some((Operation::ModelList {}, JobState::Succeeded)));
}
