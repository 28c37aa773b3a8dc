//! Stored payloads go on parsing.

use hive_contract::{CapabilitiesReply, DeviceKind, HiveHeartbeat, Operation};
use rbee_tests::wire;
use serde_json::{Value, json};
use shared_contract::{DropReason, HeartbeatAck};
use worker_contract::{Endpoint, Feature, FinishReason, InferEvent, InferUsage, WorkerHeartbeat, WorkerStatus};

fn worker(name: &str) -> WorkerHeartbeat {
    serde_json::from_value(wire::payload(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn hive(name: &str) -> HiveHeartbeat {
    serde_json::from_value(wire::payload(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Whether all that `part` says stands in `whole`, too.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).map_or(part.is_null(), |whole| contains(whole, part))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        (Value::Number(whole), Value::Number(part)) => {
            let (whole, part) = (whole.as_f64().unwrap(), part.as_f64().unwrap());
            (whole - part).abs() <= 1e-6 * part.abs()
        }
        _ => whole == part,
    }
}

#[test]
fn the_minimal_worker_heartbeat_gets_the_documented_defaults() {
    let beat = worker("worker_minimal");
    assert_eq!(beat.worker.status, WorkerStatus::Ready);
    assert_eq!(
        (
            beat.worker.slots,
            beat.worker.context_length,
            beat.worker.incarnation,
            beat.seq
        ),
        (1, 0, 0, 0)
    );
    assert_eq!(
        (beat.worker.host, beat.worker.hive_id, beat.worker.pid),
        (None, None, None)
    );
    assert_eq!(beat.worker.endpoints, [Endpoint::ChatCompletions]);
    assert_eq!(beat.load, worker_contract::WorkerLoad::default());
}

#[test]
fn the_minimal_hive_heartbeat_is_accepted() {
    let beat = hive("hive_minimal");
    assert_eq!(beat.hive.hostname, "192.168.1.20");
    assert_eq!((beat.capabilities, beat.changes, beat.workers.len()), (None, None, 0));
}

#[test]
fn unknown_fields_and_words_for_endpoints_are_ignored() {
    let beat = worker("worker_unknown_fields");
    assert_eq!(beat.worker.endpoints, [Endpoint::ChatCompletions, Endpoint::Unknown]);
    assert_eq!(beat.load.running, 1);
    assert_eq!(hive("hive_unknown_fields").monitor.devices[0].vram_used_mb, None);
}

#[test]
fn a_device_of_a_kind_that_this_version_does_not_know_is_still_a_device() {
    let mut beat = wire::payload("hive_gpu_host");
    beat["capabilities"]["devices"][2]["kind"] = "abacus".into();
    let beat: HiveHeartbeat = serde_json::from_value(beat).unwrap();
    assert_eq!(beat.capabilities.unwrap().devices[2].kind, DeviceKind::Unknown);
}

#[test]
fn every_operation_is_named_as_it_is_written() {
    for (name, rest) in [
        ("worker_spawn", json!({"model": "m"})),
        (
            "worker_spawn",
            json!({"model": "m", "worker": "cuda", "device": "cuda:1", "context_length": 4096, "slots": 8, "keep_alive_s": 0}),
        ),
        ("worker_list", json!({})),
        ("worker_get", json!({"worker_id": "w"})),
        ("worker_stop", json!({"worker_id": "w", "grace_s": 5})),
        ("worker_drain", json!({"worker_id": "w"})),
        ("worker_logs", json!({"worker_id": "w", "lines": 10, "follow": true})),
        ("model_pull", json!({"model": "m"})),
        ("model_list", json!({})),
        ("model_get", json!({"model": "m", "verify": true})),
        ("model_delete", json!({"model": "m"})),
        ("device_list", json!({})),
    ] {
        let mut stored = rest;
        stored["operation"] = name.into();
        let operation: Operation =
            serde_json::from_value(stored.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(operation.name(), name);
        let again = serde_json::to_value(operation).unwrap();
        assert!(contains(&again, &stored), "{again:#}");
        stored["modle"] = "m".into();
        assert!(
            serde_json::from_value::<Operation>(stored).is_err(),
            "{name}: a word that it does not know"
        );
    }
}

#[test]
fn full_payloads_survive_a_round_trip() {
    let stored = wire::payload("worker_full");
    let again = serde_json::to_value(worker("worker_full")).unwrap();
    assert!(contains(&again, &stored), "{again:#}");
    for name in ["hive_full", "hive_gpu_host"] {
        let stored = wire::payload(name);
        let again = serde_json::to_value(hive(name)).unwrap();
        assert!(contains(&again, &stored), "{again:#}");
    }
}

#[test]
fn what_a_worker_of_a_later_version_can_do_does_not_hide_what_is_known() {
    let told = worker("worker_features").worker.features;
    let known = [
        Feature::Resume,
        Feature::ContinueFinalMessage,
        Feature::CountTokens,
        Feature::Unknown,
    ];
    assert_eq!(told, known);
    assert_eq!(worker("worker_full").worker.features, [], "one that says nothing");
}

#[test]
fn a_workers_exit_names_its_process_where_the_hive_knows_it() {
    let exits = |name| hive(name).changes.unwrap().workers_removed;
    assert_eq!(exits("hive_full")[0].pid, None);
    assert_eq!(exits("hive_worker_exit")[0].pid, Some(4242));
}

#[test]
fn an_acknowledgement_says_why_a_beat_was_dropped_and_is_read_without_that() {
    let ack = |payload| serde_json::from_value::<HeartbeatAck>(payload).unwrap();
    assert_eq!(ack(wire::payload("ack_minimal")).dropped, None);
    let stored = wire::payload("ack_dropped");
    let dropped = ack(stored.clone());
    assert_eq!(dropped.dropped, Some(DropReason::Conflict));
    assert_eq!(serde_json::to_value(dropped).unwrap(), stored);
    let departed = ack(wire::payload("ack_departed"));
    assert_eq!(departed.known_incarnation, Some(1_763_788_800_000));
    let mut newer = stored;
    newer["dropped"] = "a reason of a later version".into();
    assert_eq!(ack(newer).dropped, Some(DropReason::Unknown));
}

#[test]
fn a_reply_with_capabilities_names_the_hive_and_is_read_without_that() {
    let stored = wire::payload("capabilities_reply");
    let reply: CapabilitiesReply = serde_json::from_value(stored.clone()).unwrap();
    assert_eq!(reply.hive_id.as_ref().unwrap().as_str(), "gpu-box-2");
    assert!(contains(&serde_json::to_value(&reply).unwrap(), &stored));
    let plain = serde_json::to_value(&reply.capabilities).unwrap();
    assert_eq!(
        serde_json::from_value::<CapabilitiesReply>(plain).unwrap().hive_id,
        None
    );
}

#[test]
fn the_end_of_a_stream_of_tokens_tells_what_was_cached_and_is_read_without_that() {
    let event = |name| serde_json::from_value::<InferEvent>(wire::payload(name)).unwrap();
    let usage = InferUsage {
        prompt_tokens: 5,
        completion_tokens: 3,
        cached_tokens: 0,
    };
    let finish_reason = FinishReason::Length;
    assert_eq!(event("infer_done_minimal"), InferEvent::Done { finish_reason, usage });
    let stored = wire::payload("infer_done_full");
    assert_eq!(serde_json::to_value(event("infer_done_full")).unwrap(), stored);
}

#[test]
fn each_malformed_payload_is_refused() {
    for case in wire::malformed() {
        let refused = match case.endpoint.as_str() {
            "/v1/worker-heartbeat" => serde_json::from_value::<WorkerHeartbeat>(case.body).is_err(),
            "/v1/hive-heartbeat" => serde_json::from_value::<HiveHeartbeat>(case.body).is_err(),
            other => panic!("{}: no endpoint {other}", case.name),
        };
        assert!(refused, "{} was accepted", case.name);
    }
}
