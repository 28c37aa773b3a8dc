//! What was asked and answered so far, as the next request carries it.

use serde_json::{Value, json};

/// Stands behind what came of an answer that was stopped, for the reader and for the model.
const CUT: &str = " …";

/// One question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// What the user typed.
    pub(super) question: String,
    /// What came; of a stopped answer its beginning.
    pub(super) answer: String,
    /// Whether the answer was stopped.
    pub(super) is_cut: bool,
}

/// A chat so far; with a base model, the text so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Conversation {
    /// Instruction before everything.
    pub(super) system: Option<String>,
    turns: Vec<Turn>,
}

impl Conversation {
    /// One that begins with an instruction.
    pub(super) fn new(system: Option<String>) -> Self {
        Self {
            system,
            turns: Vec::new(),
        }
    }

    /// How many questions have answers.
    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// An answer came.
    pub(super) fn add(&mut self, turn: Turn) {
        self.turns.push(turn);
    }

    /// Forgets all but the instruction.
    pub(super) fn clear(&mut self) {
        self.turns.clear();
    }

    /// Takes the last question and its answer out.
    pub(super) fn undo(&mut self) -> Option<Turn> {
        self.turns.pop()
    }

    /// As a chat's messages; `question` is the one that has no answer yet.
    pub(super) fn messages(&self, question: Option<&str>) -> Vec<Value> {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let system = self.system.iter().map(|text| message("system", text));
        let turns = self.turns.iter().flat_map(|turn| {
            let answer = message("assistant", &turn.said());
            [message("user", &turn.question), answer]
        });
        let open = question.iter().map(|text| message("user", text));
        system.chain(turns).chain(open).collect()
    }

    /// As one text for a base model, which goes on where it ends: in a new line if the question has words.
    pub(super) fn text(&self, question: Option<&str>) -> String {
        let mut text = String::new();
        let turns = self
            .turns
            .iter()
            .map(|turn| (turn.question.as_str(), turn.answer.as_str()));
        for (question, answer) in turns.chain(question.map(|question| (question, ""))) {
            if !text.is_empty() && !question.is_empty() {
                text.push('\n');
            }
            text.push_str(question);
            text.push_str(answer);
        }
        text
    }

    /// The conversation of a request's body.
    pub(super) fn of_body(body: &Value) -> Result<Self, String> {
        if let Some(text) = body["prompt"].as_str() {
            let turn = Turn {
                question: text.to_owned(),
                answer: String::new(),
                is_cut: false,
            };
            return Ok(Self {
                system: None,
                turns: vec![turn],
            });
        }
        let messages = body["messages"]
            .as_array()
            .ok_or("it has neither `messages` nor `prompt`")?;
        let mut conversation = Self::default();
        let mut question: Option<String> = None;
        for message in messages {
            let text = message["content"].as_str().ok_or("a message's `content` is no text")?;
            match (message["role"].as_str().unwrap_or_default(), question.take()) {
                ("system", None) if conversation == Self::default() => conversation.system = Some(text.to_owned()),
                ("user", None) => question = Some(text.to_owned()),
                ("assistant", Some(question)) => conversation.add(Turn {
                    question,
                    answer: text.to_owned(),
                    is_cut: false,
                }),
                (role, _) => return Err(format!("a message of `{role}` stands where it cannot be")),
            }
        }
        match question {
            Some(_) => Err("its last question has no answer".to_owned()),
            None => Ok(conversation),
        }
    }
}

impl Turn {
    fn said(&self) -> String {
        match self.is_cut {
            true => format!("{}{CUT}", self.answer.trim_end()),
            false => self.answer.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(question: &str, answer: &str, is_cut: bool) -> Turn {
        Turn {
            question: question.into(),
            answer: answer.into(),
            is_cut,
        }
    }

    #[test]
    fn a_request_carries_all_that_was_said() {
        let mut talk = Conversation::new(Some("be brief".into()));
        talk.add(turn("hi", "hello", false));
        let roles = |talk: &Conversation| -> Vec<String> {
            let messages = talk.messages(Some("and?"));
            messages
                .iter()
                .map(|it| format!("{}: {}", it["role"].as_str().unwrap(), it["content"].as_str().unwrap()))
                .collect()
        };
        assert_eq!(
            roles(&talk),
            ["system: be brief", "user: hi", "assistant: hello", "user: and?"]
        );
        assert_eq!(talk.undo().unwrap().question, "hi");
        assert_eq!(roles(&talk), ["system: be brief", "user: and?"]);
        assert_eq!(talk.undo(), None);
    }

    #[test]
    fn what_came_of_a_stopped_answer_stays_and_is_marked() {
        let mut talk = Conversation::default();
        talk.add(turn("count", "1, 2, ", true));
        assert_eq!(talk.messages(None)[1]["content"], "1, 2, …");
    }

    #[test]
    fn a_base_model_goes_on_with_the_text_so_far() {
        let mut talk = Conversation::default();
        assert_eq!(talk.text(Some("Once")), "Once");
        talk.add(turn("Once", " upon a time", true));
        assert_eq!(talk.text(Some("Then")), "Once upon a time\nThen");
        assert_eq!(talk.text(Some("")), "Once upon a time");
    }

    #[test]
    fn a_saved_conversation_is_read_back() {
        let mut talk = Conversation::new(Some("be brief".into()));
        talk.add(turn("hi", "hello", false));
        talk.add(turn("bye", "see you", false));
        assert_eq!(
            Conversation::of_body(&json!({"messages": talk.messages(None)})).unwrap(),
            talk
        );
        let raw = Conversation::of_body(&json!({"prompt": "Once upon"})).unwrap();
        assert_eq!(raw.text(None), "Once upon");
    }

    #[test]
    fn a_file_that_is_no_conversation_says_why() {
        let ask = json!({"role": "user", "content": "hi"});
        for (body, why) in [
            (json!({}), "neither"),
            (json!({"messages": [ask]}), "no answer"),
            (json!({"messages": [ask, ask]}), "`user` stands"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "`tool` stands"),
            (json!({"messages": [{"role": "user", "content": []}]}), "no text"),
        ] {
            let error = Conversation::of_body(&body).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
    }
}
