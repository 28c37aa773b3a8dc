//! What a chat says of itself.

use super::Listed;
use crate::answer::Answer;

/// The first lines.
pub(super) fn greeting(model: &Listed, is_raw: bool) -> String {
    let mut text = model.id.clone();
    if model.context_length > 0 {
        text.push_str(&format!(", a context of {} tokens", model.context_length));
    }
    text.push_str(match model.state.as_str() {
        "on_disk" => "; your first question loads it",
        "available" => "; your first question fetches and loads it",
        _ => "",
    });
    if is_raw {
        text.push('\n');
        text.push_str(&base_model(&model.id));
    }
    text.push_str("\n/help shows the commands, Ctrl-C stops an answer, Ctrl-D ends the chat.");
    text
}

/// What is different without a chat template.
pub(super) fn base_model(model: &str) -> String {
    format!("{model} is a base model: it continues your text.\nEnter alone lets it go on.")
}

/// What to do when the context is full.
pub(super) fn context_remedy(turns: usize) -> &'static str {
    match turns {
        0 => "the text alone is too long for this model: shorten it, or /model NAME takes one with a longer context",
        _ => {
            "the conversation has outgrown this model's context: /undo takes the last exchange back, /clear begins \
             anew, /model NAME goes on with a longer context"
        }
    }
}

/// Why an answer ends where it does, unless the model ended it.
pub(super) fn cut_off(limit: Option<u64>, turns: usize) -> String {
    match limit {
        Some(limit) => format!("(cut off after {limit} tokens: /set max_tokens changes that)"),
        None => format!("(cut off: {})", context_remedy(turns)),
    }
}

/// What `/stats` shows of the last answer.
pub(super) fn stats(answer: &Answer) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        text.push_str(&format!("{name:<12}{}\n", value.as_deref().unwrap_or("not known")));
    };
    let count = |path: &str| answer.usage.as_ref()?.pointer(path)?.as_u64();
    let first = answer.time_to_first_text();
    line(
        "first text",
        first.map(|span| format!("after {:.2} s", span.as_secs_f64())),
    );
    line(
        "speed",
        answer.tokens_per_second().map(|rate| format!("{rate:.1} tokens/s")),
    );
    let known = count("/prompt_tokens_details/cached_tokens").filter(|count| *count > 0);
    let known = known.map_or(String::new(), |count| format!(" ({count} of them known from before)"));
    line(
        "prompt",
        count("/prompt_tokens").map(|count| format!("{count} tokens{known}")),
    );
    line(
        "answer",
        count("/completion_tokens").map(|count| format!("{count} tokens")),
    );
    let receipt = &answer.receipt;
    let place = match (&receipt.worker, &receipt.hive) {
        (Some(worker), Some(hive)) => Some(format!("{worker} on {hive}")),
        (worker, _) => worker.clone(),
    };
    line("worker", place);
    line(
        "waited",
        receipt
            .queue_ms
            .map(|ms| format!("{:.2} s for a worker", ms as f64 / 1e3)),
    );
    if receipt.attempts.is_some_and(|attempts| attempts > 1) || receipt.migrations.is_some_and(|count| count > 0) {
        let [attempts, migrations] = [receipt.attempts, receipt.migrations].map(Option::unwrap_or_default);
        line(
            "tried",
            Some(format!("{attempts} workers; another one took over {migrations} times")),
        );
    }
    line("request", receipt.request_id.clone());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(state: &str) -> Listed {
        Listed {
            id: "m".into(),
            state: state.into(),
            context_length: 8_192,
        }
    }

    #[test]
    fn the_greeting_says_what_the_first_question_will_meet() {
        assert_eq!(
            greeting(&listed("ready"), false),
            "m, a context of 8192 tokens\n/help shows the commands, Ctrl-C stops an answer, Ctrl-D ends the chat."
        );
        assert!(greeting(&listed("on_disk"), false).contains("your first question loads it"));
        assert!(greeting(&listed("ready"), true).contains("base model"));
    }

    #[test]
    fn a_full_context_is_told_from_a_limit_and_both_name_a_remedy() {
        assert!(cut_off(Some(5), 1).contains("/set max_tokens"));
        assert!(cut_off(None, 1).contains("/undo"));
        assert!(context_remedy(0).contains("shorten"));
    }

    #[test]
    fn what_is_not_known_of_an_answer_is_said_to_be_so() {
        let mut answer = Answer::begin();
        assert!(stats(&answer).contains("speed       not known"));
        answer.receipt.worker = Some("worker-1".into());
        answer.receipt.hive = Some("gpu-box".into());
        answer.usage = Some(serde_json::json!({
            "prompt_tokens": 31, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 24},
        }));
        let text = stats(&answer);
        assert!(text.contains("worker      worker-1 on gpu-box\n"), "{text}");
        assert!(
            text.contains("prompt      31 tokens (24 of them known from before)\n"),
            "{text}"
        );
        assert!(!text.contains("tried"), "{text}");
    }
}
