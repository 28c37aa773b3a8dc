//! Texts as vectors.

use serde_json::{Value, json};

use super::requests::EMBEDDINGS;
use super::support::{Script, TestWorker};

fn asking(mut body: Value) -> Value {
    body["model"] = json!("org/tiny");
    body
}

/// The hidden state of a byte is its number and 1, that of the opening token 1 and 1; an embedding is their mean, of
/// the length 1.
fn expected(bytes: &[u8], has_opening: bool) -> Vec<f64> {
    let opening = has_opening.then_some(1.0);
    let values: Vec<f64> = opening
        .into_iter()
        .chain(bytes.iter().map(|&byte| f64::from(byte)))
        .collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let length = mean.hypot(1.0);
    vec![mean / length, 1.0 / length]
}

fn is_near(vector: &[f64], expected: &[f64]) -> bool {
    vector.len() == expected.len() && vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
}

fn vector(item: &Value) -> Vec<f64> {
    let values = item["embedding"].as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn several_texts_become_vectors_of_length_one_in_their_order() {
    let worker = TestWorker::start(Script::new(""), &["--slots", "2"]).await;
    let texts = ["a", "bc", "def", "ghij", "k"];
    let answer = worker
        .answer(EMBEDDINGS, &asking(json!({"input": texts, "dimensions": 2})))
        .await;
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("org/tiny"))
    );
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), texts.len());
    for (index, (item, text)) in data.iter().zip(texts).enumerate() {
        assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
        assert!(is_near(&vector(item), &expected(text.as_bytes(), true)), "{item}");
    }
    let tokens: usize = texts.iter().map(|text| text.len() + 1).sum();
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": tokens, "total_tokens": tokens})
    );
    worker
        .until_metric(r#"rbee_worker_requests_total{endpoint="embeddings",outcome="finished"} 1"#)
        .await;
}

#[tokio::test]
async fn tokens_are_taken_as_they_are_and_base64_says_the_same() {
    let worker = TestWorker::start(Script::new(""), &[]).await;
    let answer = worker.answer(EMBEDDINGS, &asking(json!({"input": [98, 99]}))).await;
    let plain = vector(&answer["data"][0]);
    assert!(is_near(&plain, &expected(b"bc", false)));
    let body = asking(json!({"input": [[98, 99]], "encoding_format": "base64"}));
    let encoded = worker.answer(EMBEDDINGS, &body).await;
    let bytes: Vec<u8> = plain.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
    assert_eq!(encoded["data"][0]["embedding"], base64(&bytes));
}

/// Of a number of bytes that is no multiple of three: 8.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { letter.into() } else { '=' });
        }
    }
    text
}

#[tokio::test]
async fn a_text_may_fill_the_context_and_no_more() {
    let script = Script {
        context_length: 16,
        ..Script::new("")
    };
    let worker = TestWorker::start(script, &[]).await;
    worker
        .answer(EMBEDDINGS, &asking(json!({"input": "x".repeat(15)})))
        .await;
    for length in [16, 17] {
        let (status, error) = worker
            .refusal(EMBEDDINGS, &asking(json!({"input": "x".repeat(length)})))
            .await;
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")));
        assert_eq!(error["param"], "input");
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_embeddings() {
    let script = Script::new("");
    let gate = script.gate.clone();
    let worker = TestWorker::start(script, &["--slots", "1"]).await;
    gate.close();
    let request = tokio::spawn(
        worker
            .http
            .post(format!("{}{EMBEDDINGS}", worker.base))
            .json(&asking(json!({"input": ["a", "b", "c"]})))
            .send(),
    );
    worker.until_metric("rbee_worker_sequences_running 1").await;
    request.abort();
    worker
        .until_metric(r#"rbee_worker_requests_total{endpoint="embeddings",outcome="cancelled"} 1"#)
        .await;
    gate.open();
    worker.until_metric("rbee_worker_sequences_running 0").await;
    worker.until_metric("rbee_worker_requests_waiting 0").await;
}
