//! What the model itself says of texts: how probable their tokens are, and where they lie.

use rbee_tests::chats::{ask, streamed_text, with};
use rbee_tests::{Cluster, http, models};
use serde_json::{Value, json};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

fn spelled(tokens: &[Value]) -> Vec<u8> {
    let bytes = tokens.iter().flat_map(|token| list(&token["bytes"]));
    bytes
        .map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()).expect("a byte"))
        .collect()
}

/// Each token and its alternatives are probabilities of one distribution.
fn assert_sound(tokens: &[Value]) {
    for token in tokens {
        let top: Vec<f64> = list(&token["top_logprobs"])
            .iter()
            .map(|top| number(&top["logprob"]))
            .collect();
        assert_eq!(top.len(), 5, "{token}");
        assert!(top.is_sorted_by(|a, b| a >= b), "most probable first: {token}");
        let mass: f64 = top.iter().map(|logprob| logprob.exp()).sum();
        assert!(mass <= 1.0 + 1e-4, "the alternatives have {mass} together: {token}");
        assert!(number(&token["logprob"]) <= top[0], "{token}");
    }
}

#[tokio::test]
async fn logprobs_are_a_distribution_and_greedy_answers_take_its_top() {
    let (cluster, _worker) = Cluster::serving(models::SMOLLM2).await;
    let body = ask("Why is the sky blue?", &json!({"logprobs": true, "top_logprobs": 5}));
    let answer = http::post(cluster.chat_url(), &body).await;
    let tokens = list(&answer.body["choices"][0]["logprobs"]["content"]);
    assert_eq!(tokens.len(), 24);
    assert_eq!(String::from_utf8(spelled(tokens)).unwrap(), answer.text());
    assert_sound(tokens);
    for token in tokens {
        let top = &token["top_logprobs"][0];
        assert_eq!((&token["token"], &token["logprob"]), (&top["token"], &top["logprob"]));
    }

    let chunks = http::chunks(cluster.chat_url(), &with(body.clone(), &json!({"stream": true}))).await;
    let streamed = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(
        streamed.flatten().collect::<Vec<_>>(),
        tokens.iter().collect::<Vec<_>>()
    );
    assert_eq!(streamed_text(&chunks, 0), answer.text());

    // They are the model's own, whatever is done to choose.
    let fields = json!({"temperature": 1.5, "seed": 3, "top_k": 50, "presence_penalty": 1, "n": 2});
    let drawn = http::post(cluster.chat_url(), &with(body, &fields)).await;
    for choice in list(&drawn.body["choices"]) {
        let drawn = list(&choice["logprobs"]["content"]);
        assert_sound(drawn);
        assert_eq!(drawn[0]["top_logprobs"], tokens[0]["top_logprobs"], "the same prompt");
    }
}

#[tokio::test]
async fn an_echo_is_judged_as_it_was_when_it_was_written() {
    let (cluster, _worker) = Cluster::serving(models::SMOLLM2).await;
    let prompt = "The capital of France is";
    let body = json!({
        "model": models::SMOLLM2, "prompt": prompt, "temperature": 0, "max_tokens": 40, "logprobs": 3, "echo": true,
    });
    let written = http::post(cluster.completions_url(), &body).await;
    assert!(written.text().starts_with(prompt), "{written:?}");
    let tokens = &written.body["choices"][0]["logprobs"];
    let texts: String = list(&tokens["tokens"])
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert_eq!(texts, written.text());
    let logprobs = list(&tokens["token_logprobs"]);
    assert!(logprobs[0].is_null() && logprobs[1..].iter().all(|logprob| number(logprob) <= 0.0));
    let offsets: Vec<_> = list(&tokens["text_offset"])
        .iter()
        .map(|offset| offset.as_u64().unwrap())
        .collect();
    assert!(offsets[0] == 0 && offsets.is_sorted(), "{offsets:?}");

    // The text as a prompt: its tokens are run together where they were written one by one.
    let judged = with(body, &json!({"prompt": written.text(), "max_tokens": 0}));
    let judged = http::post(cluster.completions_url(), &judged).await;
    assert_eq!(judged.text(), written.text());
    assert_eq!(&judged.body["choices"][0]["logprobs"], tokens);
    assert_eq!(judged.body["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn an_embedding_is_a_direction_that_depends_on_the_text_alone() {
    let (cluster, _worker) = Cluster::serving(models::SMOLLM2).await;
    let bees = "Bees make honey from the nectar of flowers.";
    let texts = [
        bees,
        "Honey bees turn nectar of flowers into honey.",
        "The stock market fell sharply on Monday.",
        &"A much longer text. ".repeat(60),
        bees,
    ];
    let body = json!({"model": models::SMOLLM2, "input": texts});
    let answer = http::post(cluster.embeddings_url(), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let vectors = |answer: &http::Answer| -> Vec<Vec<f64>> {
        let data = list(&answer.body["data"]).iter();
        data.map(|item| list(&item["embedding"]).iter().map(number).collect())
            .collect()
    };
    let together = vectors(&answer);
    assert_eq!(together.iter().map(Vec::len).collect::<Vec<_>>(), [576; 5]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for vector in &together {
        assert!((dot(vector, vector) - 1.0).abs() < 1e-5);
    }
    assert_eq!(together[0], together[4], "the same text");
    for other in &together[1..4] {
        let closeness = dot(&together[0], other);
        assert!(closeness < 0.9999, "another text: {closeness}");
    }
    let (alike, unlike) = (dot(&together[0], &together[1]), dot(&together[0], &together[2]));
    assert!(
        alike > unlike,
        "{alike} for what means the same, {unlike} for what does not"
    );

    let alone = with(body, &json!({"input": bees}));
    let answer = http::post(cluster.embeddings_url(), &alone).await;
    assert_eq!(vectors(&answer), [together[0].clone()], "alone and in company");
    assert_eq!(
        answer.body["usage"]["prompt_tokens"],
        answer.body["usage"]["total_tokens"]
    );

    let encoded = with(alone, &json!({"encoding_format": "base64"}));
    let encoded = http::post(cluster.embeddings_url(), &encoded).await;
    let text = encoded.body["data"][0]["embedding"].as_str().expect("base64");
    assert_eq!(text.len(), (576_usize * 4).div_ceil(3) * 4);
}
