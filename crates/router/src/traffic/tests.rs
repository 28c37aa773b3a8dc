use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_763_800_000;
const IDLE: Load = Load {
    inflight: 0,
    waiting: 0,
};

fn ended(model: &str) -> Ended<'_> {
    Ended {
        model: Some(model),
        outcome: Outcome::Answered,
        output_tokens: 10,
        first_token: Some(Duration::from_millis(200)),
        tokens_per_s: Some(40.0),
    }
}

fn points(traffic: &Traffic, now_s: i64) -> Vec<Point> {
    traffic.view(now_s, None, IDLE).points
}

#[test]
fn a_point_tells_what_ended_in_its_five_seconds() {
    let traffic = Traffic::default();
    traffic.sample(NOW, IDLE);
    for outcome in [
        Outcome::Answered,
        Outcome::Failed,
        Outcome::Refused,
        Outcome::Wrong,
        Outcome::ClientGone,
    ] {
        traffic.ended(&Ended { outcome, ..ended("m") });
    }
    traffic.relayed(30);
    traffic.retried();
    traffic.sample(
        NOW + 5,
        Load {
            inflight: 3,
            waiting: 1,
        },
    );
    traffic.relayed(7);
    traffic.migrated();

    let [first, second] = &points(&traffic, NOW + 6)[..] else {
        panic!("two points")
    };
    assert_eq!((first.at_s, first.open), (NOW, false));
    let ends = [first.failed, first.refused, first.wrong, first.clients_gone];
    assert_eq!((first.requests, ends), (5, [1; 4]));
    assert_eq!((first.output_tokens, first.retries, first.migrations), (30, 1, 0));
    assert_eq!((first.inflight, first.waiting), (3, 1));
    let ttft_ms = first.ttft_ms.unwrap();
    assert!(
        (180.0..220.0).contains(&ttft_ms.p50) && ttft_ms.p50 == ttft_ms.p99,
        "{ttft_ms:?}"
    );
    let speed = first.tokens_per_s.unwrap().p50;
    assert!((36.0..44.0).contains(&speed), "{speed}");

    assert_eq!((second.at_s, second.open, second.requests), (NOW + 5, true, 0));
    assert_eq!((second.output_tokens, second.retries, second.migrations), (7, 0, 1));
    assert_eq!((second.ttft_ms, second.tokens_per_s), (None, None));
}

#[test]
fn only_points_after_a_moment_are_shown_to_those_who_know_the_others() {
    let traffic = Traffic::default();
    for step in 0..4 {
        traffic.sample(NOW + 5 * step, IDLE);
    }
    let shown = traffic.view(NOW + 15, Some(NOW + 5), IDLE).points;
    assert_eq!(shown.iter().map(|point| point.at_s - NOW).collect::<Vec<_>>(), [10, 15]);
}

#[test]
fn an_hour_is_kept_and_no_more() {
    let traffic = Traffic::default();
    let day = 24 * 60 * 60;
    for step in 0..day / BUCKET_S {
        traffic.sample(NOW + step * BUCKET_S, IDLE);
    }
    let now = NOW + day - 1;
    let points = points(&traffic, now);
    assert_eq!(points.len() as i64, KEPT_S / BUCKET_S);
    assert!(points.iter().all(|point| point.at_s > now - KEPT_S));
}

#[test]
fn models_are_told_apart_and_forgotten_after_an_hour() {
    let traffic = Traffic::default();
    traffic.sample(NOW, IDLE);
    traffic.ended(&ended("little"));
    for _ in 0..3 {
        traffic.ended(&Ended {
            outcome: Outcome::Failed,
            ..ended("much")
        });
    }
    let view = traffic.view(NOW + SEGMENT_S, None, IDLE);
    let names: Vec<_> = view.models.iter().map(|model| &*model.model).collect();
    assert_eq!(names, ["much", "little"]);
    let much = &view.models[0];
    assert_eq!((much.requests, much.failed, much.output_tokens), (3, 3, 30));
    assert!(much.ttft_ms.is_some() && much.tokens_per_s.is_some());
    assert!((2_880..=3_600).contains(&(NOW + SEGMENT_S - view.models_since_s)));

    assert_eq!(traffic.view(NOW + KEPT_S, None, IDLE).models, []);
}

#[test]
fn models_beyond_the_bound_share_one_entry() {
    let traffic = Traffic::default();
    traffic.sample(NOW, IDLE);
    for number in 0..MAX_MODELS + 3 {
        traffic.ended(&ended(&format!("model-{number}")));
    }
    let models = traffic.view(NOW, None, IDLE).models;
    assert_eq!(models.len(), MAX_MODELS + 1);
    assert_eq!((&*models[0].model, models[0].requests), (OTHER_MODEL, 3));
}

#[test]
fn a_clock_that_is_set_back_leaves_no_points_in_the_future() {
    let traffic = Traffic::default();
    for step in 0..4 {
        traffic.sample(NOW + 5 * step, IDLE);
    }
    traffic.ended(&ended("m"));
    traffic.sample(NOW + 7, IDLE);
    traffic.sample(NOW + 10, IDLE);
    let shown = points(&traffic, NOW + 11);
    let found: Vec<_> = shown.iter().map(|point| (point.at_s - NOW, point.requests)).collect();
    assert_eq!(found, [(0, 0), (5, 1), (10, 0)]);
}

#[test]
fn an_hour_takes_less_than_300_kilobytes() {
    let points = KEPT_S as usize / BUCKET_S as usize * size_of::<Point>();
    let models = (MAX_MODELS + 1) * size_of::<[Segment; SEGMENTS]>();
    assert!(points + models < 290_000, "{points} + {models}");
}

proptest! {
    #[test]
    fn whatever_the_clock_does_the_hour_is_in_order_and_no_more_than_an_hour(
        jumps in prop::collection::vec(prop_oneof![0..20_i64, -9_000..9_000_i64, -400_000_000..400_000_000_i64], 1..40),
    ) {
        let traffic = Traffic::default();
        let mut now_s = NOW;
        for jump in jumps {
            now_s += jump;
            traffic.sample(now_s, IDLE);
            traffic.ended(&ended("m"));
            traffic.relayed(10);
            let view = traffic.view(now_s, None, IDLE);
            let times: Vec<_> = view.points.iter().map(|point| point.at_s).collect();
            prop_assert!(times.is_sorted_by(|earlier, later| earlier < later), "{times:?}");
            prop_assert!(times.iter().all(|at_s| (now_s - KEPT_S + 1..=now_s).contains(at_s)), "{times:?} at {now_s}");
            let open = view.points.iter().filter(|point| point.open).count();
            prop_assert!(open == 1 && view.points.last().unwrap().open);
            prop_assert!(view.points.last().unwrap().requests > 0);
            prop_assert_eq!(&*view.models[0].model, "m");
            prop_assert!((2_880..=3_600).contains(&(now_s - view.models_since_s)));
        }
    }
}
