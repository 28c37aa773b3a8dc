//! When a hive is asked, and what is told of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared_contract::HiveId;
use tokio::time::Instant;

use super::ask::{AskError, Questioner};

/// When hives are asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// From the queen's start to the first question.
    pub(super) first: Duration,
    /// From one look at whether the hive is there to the next, before jitter.
    pub(super) again: Duration,
    /// The same, at most, for a place where no hive has ever been found.
    pub(super) longest: Duration,
    /// For one answer.
    pub(super) limit: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            again: Duration::from_secs(30),
            longest: Duration::from_secs(300),
            limit: Duration::from_secs(10),
        }
    }
}

/// How this queen heard of a hive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is named in the settings.
    Settings,
    /// A host of the user's SSH configuration, most of which have no hive.
    Ssh,
    /// It announces itself.
    Network,
}

/// A hive, or a place where one may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Where; several are tried in turn.
    pub(super) urls: Vec<String>,
    /// Who it is, if that is known.
    pub(super) hive_id: Option<HiveId>,
    pub(super) origin: Origin,
}

/// When a hive was last asked. Outlives the asker, so that the next one does not ask too soon.
#[derive(Debug, Clone, Default)]
pub(super) struct LastAsked(Arc<Mutex<Option<Instant>>>);

impl LastAsked {
    /// It is asked now.
    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// What is left of a pause that began with the question.
    pub(super) fn left_of(&self, pause: Duration) -> Duration {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(Duration::ZERO, |last| pause.saturating_sub(last.elapsed()))
    }
}

/// Asks one hive again and again, while it is not there.
pub(super) struct Asker<F> {
    pub(super) questioner: Arc<Questioner>,
    pub(super) target: Target,
    pub(super) timing: Timing,
    pub(super) asked: LastAsked,
    /// Whether a hive beats, and nothing speaks against it that another beat would clear.
    pub(super) beats: F,
}

impl<F: Fn(&HiveId) -> bool> Asker<F> {
    /// Asks for the first time after `delay`, and goes on for ever.
    pub(super) async fn run(mut self, delay: Duration) {
        tokio::time::sleep(delay).await;
        let mut course = Course::default();
        loop {
            self.asked.note();
            let news = course.outcome(self.ask().await);
            self.tell(news);
            // The first time, too, for a hive that is a member: it may be that it was, and has only just started again.
            loop {
                let pause = course.pause(self.target.origin, &self.timing);
                // Those that were asked together at the start do not stay together.
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..=1.2))).await;
                if !self.target.hive_id.as_ref().is_some_and(&self.beats) {
                    break;
                }
                course.arrived();
            }
        }
    }

    async fn ask(&mut self) -> Result<(), AskError> {
        let mut why = None;
        for url in &self.target.urls {
            match self.ask_at(url).await {
                Ok(found) => match (found, &self.target.hive_id) {
                    (Some(found), Some(expected)) if self.target.origin == Origin::Network && found != *expected => {
                        why = Some(AskError::OtherHive {
                            found,
                            expected: expected.clone(),
                        });
                    }
                    (found, _) => {
                        self.target.hive_id = found.or(self.target.hive_id.take());
                        return Ok(());
                    }
                },
                Err(error) => why = Some(error),
            }
        }
        why.map_or(Ok(()), Err)
    }

    async fn ask_at(&self, url: &str) -> Result<Option<HiveId>, AskError> {
        match self.target.origin {
            // The operator named it, or its announcement proved that it knows the token.
            Origin::Settings | Origin::Network => self.questioner.ask(url).await,
            // Most of these hosts are nobody's hive, and anybody there can say that he is one.
            Origin::Ssh => self.questioner.ask_stranger(url).await,
        }
    }

    fn tell(&self, news: Option<News>) {
        let at = self.target.urls.join(", ");
        let hive_id = self.target.hive_id.as_ref().map(HiveId::as_str);
        match news {
            None => {}
            Some(News::Asked) => tracing::info!(at, hive_id, "a hive was asked to report here"),
            // It may beat: of one that does not say who it is, nobody can tell.
            Some(News::NoBeat) if hive_id.is_none() => {}
            Some(News::NoBeat) => tracing::warn!(
                at,
                hive_id,
                "a hive answers, but no heartbeat of it comes: can it reach this queen? --advertise-url names her address"
            ),
            Some(News::Failed(error)) if is_expected(self.target.origin, &error) => {
                tracing::debug!(at, %error, "a hive was asked in vain");
            }
            // Most likely no hive of this fleet.
            Some(News::Failed(error @ AskError::Unproven { .. })) => tracing::info!(at, %error, "a hive was not asked"),
            Some(News::Failed(error)) => tracing::warn!(at, hive_id, %error, "a hive was asked in vain"),
        }
    }
}

/// Whether a failure is no reason to trouble the operator, who did not name the hive.
fn is_expected(origin: Origin, error: &AskError) -> bool {
    // For all of them, it is told when the queen starts.
    let is_told = matches!(error, AskError::LoopbackOnly(_));
    match origin {
        Origin::Settings => false,
        Origin::Ssh => is_told || error.is_absence() || matches!(error, AskError::NoOwnAddress { .. }),
        Origin::Network => is_told,
    }
}

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// It answered.
    Asked,
    /// It had answered before, and still nothing came.
    NoBeat,
    /// Another failure than the last one.
    Failed(AskError),
}

/// What came of the questions so far.
#[derive(Debug, Default)]
struct Course {
    last: Option<Result<(), AskError>>,
    told_no_beat: bool,
    /// Whether there has ever been a hive, be it one that refused.
    was_found: bool,
    /// Failures since the last answer.
    failures: u32,
}

impl Course {
    /// It is there: whatever comes next is news.
    fn arrived(&mut self) {
        self.last = None;
        self.told_no_beat = false;
        self.failures = 0;
    }

    /// Takes the outcome of a question; answers with what is to be told of it, each change once.
    fn outcome(&mut self, outcome: Result<(), AskError>) -> Option<News> {
        let is_same = self.last.as_ref() == Some(&outcome);
        self.last = Some(outcome.clone());
        match outcome {
            Ok(()) => {
                self.was_found = true;
                self.failures = 0;
                if !is_same {
                    return Some(News::Asked);
                }
                (!std::mem::replace(&mut self.told_no_beat, true)).then_some(News::NoBeat)
            }
            Err(error) => {
                self.was_found |= !error.is_absence();
                self.failures = self.failures.saturating_add(1);
                (!is_same).then_some(News::Failed(error))
            }
        }
    }

    /// How long until the next look, before jitter.
    fn pause(&self, origin: Origin, timing: &Timing) -> Duration {
        if origin != Origin::Ssh || self.was_found {
            return timing.again;
        }
        let doublings = self.failures.saturating_sub(1).min(16);
        timing.again.saturating_mul(1 << doublings).min(timing.longest)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc;
    use tokio_util::task::AbortOnDropHandle;

    use super::super::support::{Answer, FakeHive, questioner, within};
    use super::*;

    const AT_ONCE: Timing = Timing {
        first: Duration::ZERO,
        again: Duration::from_millis(1),
        longest: Duration::from_millis(1),
        limit: Duration::from_secs(10),
    };

    fn target(url: &str) -> Target {
        Target {
            urls: vec![url.to_owned()],
            hive_id: None,
            origin: Origin::Settings,
        }
    }

    /// An asker for a hive, the looks it takes at whether the hive is there, and the switch for that.
    struct Bench {
        looks: mpsc::Receiver<HiveId>,
        is_online: Arc<AtomicBool>,
        _task: AbortOnDropHandle<()>,
    }

    fn start(target: Target, delay: Duration) -> Bench {
        let (look, looks) = mpsc::channel(1);
        let is_online = Arc::new(AtomicBool::new(true));
        let switch = Arc::clone(&is_online);
        let asker = Asker {
            questioner: Arc::new(questioner(None)),
            target,
            timing: AT_ONCE,
            asked: LastAsked::default(),
            beats: move |hive: &HiveId| {
                // What nobody waits for is not kept.
                let _ = look.try_send(hive.clone());
                switch.load(Ordering::SeqCst)
            },
        };
        Bench {
            looks,
            is_online,
            _task: AbortOnDropHandle::new(tokio::spawn(asker.run(delay))),
        }
    }

    #[tokio::test]
    async fn a_hive_is_asked_once_and_again_when_it_is_lost() {
        let mut hive = FakeHive::start(Answer::Hive("gpu-box")).await;
        let mut bench = start(target(&hive.url), Duration::ZERO);
        within(hive.asked()).await;
        for _ in 0..5 {
            assert_eq!(within(bench.looks.recv()).await.unwrap().as_str(), "gpu-box");
        }
        assert!(hive.has_been_asked_for().is_none(), "a hive that is there is not asked");

        bench.is_online.store(false, Ordering::SeqCst);
        within(hive.asked()).await;
        within(hive.asked()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_question_comes_five_seconds_after_the_start() {
        let mut hive = FakeHive::start(Answer::Never).await;
        let began = Instant::now();
        let _bench = start(target(&hive.url), Timing::default().first);
        hive.asked().await;
        assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn of_several_addresses_the_one_where_the_announced_hive_is_counts() {
        let mut other = FakeHive::start(Answer::Hive("stranger")).await;
        let mut hive = FakeHive::start(Answer::Hive("gpu-box")).await;
        let announced = Target {
            urls: vec![other.url.clone(), hive.url.clone()],
            hive_id: Some(HiveId::new("gpu-box").unwrap()),
            origin: Origin::Network,
        };
        let bench = start(announced, Duration::ZERO);
        bench.is_online.store(false, Ordering::SeqCst);
        within(other.asked()).await;
        within(hive.asked()).await;
    }

    #[tokio::test]
    async fn a_host_of_the_ssh_configuration_is_looked_at_before_it_is_asked() {
        let mut hive = FakeHive::start(Answer::Hive("gpu-box")).await;
        let mut other = FakeHive::start(Answer::Body(404, "{}")).await;
        let listed = |hive: &FakeHive| Target {
            origin: Origin::Ssh,
            ..target(&hive.url)
        };
        let _benches = [&hive, &other].map(|hive| start(listed(hive), Duration::ZERO));
        let paths = [within(hive.asked()).await.path, within(hive.asked()).await.path];
        assert_eq!(paths, ["/health", "/v1/capabilities"]);
        for _ in 0..3 {
            assert_eq!(within(other.asked()).await.path, "/health");
        }
    }

    #[test]
    fn a_failure_is_told_once_and_each_change_anew() {
        let mut course = Course::default();
        let refused = || Err(AskError::Unreachable("refused".to_owned()));
        assert_eq!(course.outcome(refused()), Some(News::Failed(refused().unwrap_err())));
        assert_eq!(course.outcome(refused()), None);
        assert_eq!(
            course.outcome(Err(AskError::WrongToken)),
            Some(News::Failed(AskError::WrongToken))
        );
        assert_eq!(course.outcome(Ok(())), Some(News::Asked));
        course.arrived();
        assert_eq!(course.outcome(refused()), Some(News::Failed(refused().unwrap_err())));
    }

    #[test]
    fn a_host_of_the_ssh_configuration_without_a_hive_is_no_trouble_and_a_wrong_token_is() {
        let absent = AskError::Unreachable("refused".to_owned());
        assert!(is_expected(Origin::Ssh, &absent));
        assert!(!is_expected(Origin::Settings, &absent) && !is_expected(Origin::Network, &absent));
        assert!(!is_expected(Origin::Ssh, &AskError::WrongToken));
    }

    #[test]
    fn a_hive_that_answers_and_never_beats_is_told_once() {
        let mut course = Course::default();
        let told: Vec<_> = (0..4).map(|_| course.outcome(Ok(()))).collect();
        assert_eq!(told, [Some(News::Asked), Some(News::NoBeat), None, None]);
    }

    #[test]
    fn hosts_of_the_ssh_configuration_without_a_hive_are_asked_less_and_less() {
        let timing = Timing::default();
        let mut course = Course::default();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            course.outcome(Err(AskError::Silent(timing.limit)));
            pauses.push(course.pause(Origin::Ssh, &timing).as_secs());
            assert_eq!(course.pause(Origin::Settings, &timing), timing.again);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300]);
        for found in [Ok(()), Err(AskError::WrongToken)] {
            let mut course = Course::default();
            course.outcome(found);
            course.outcome(Err(AskError::Silent(timing.limit)));
            assert_eq!(course.pause(Origin::Ssh, &timing), timing.again);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_pause_is_counted_from_the_question() {
        let (asked, pause) = (LastAsked::default(), Duration::from_secs(30));
        assert_eq!(asked.left_of(pause), Duration::ZERO, "it was never asked");
        asked.note();
        tokio::time::advance(Duration::from_secs(12)).await;
        assert_eq!(asked.left_of(pause), Duration::from_secs(18));
        tokio::time::advance(pause).await;
        assert_eq!(asked.left_of(pause), Duration::ZERO);
    }
}
