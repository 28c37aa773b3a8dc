//! The words that begin with `/`.

use std::path::PathBuf;

/// What a line means.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    /// Nothing was typed.
    Empty,
    /// Something for the model.
    Say(String),
    /// Something for the chat itself.
    Command(Command),
    /// A command that is not right, and how it would be.
    Wrong(String),
}

/// A command with what stands behind it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Help,
    /// All settings are shown, one is shown, or changed.
    Set(Option<(String, String)>),
    /// The instruction is shown, or changed; an empty one is none.
    System(Option<String>),
    /// The models are listed, or another one goes on.
    Model(Option<String>),
    Clear,
    Undo,
    Retry,
    Save(PathBuf),
    Load(PathBuf),
    Stats,
    Bye,
}

/// Name, what may stand behind it, and what it does.
const HELP: [(&str, &str, &str); 11] = [
    ("/help", "", "shows this"),
    (
        "/set",
        "NAME VALUE",
        "changes how answers are made; alone, it shows all settings",
    ),
    (
        "/system",
        "TEXT",
        "gives an instruction before everything; `none` takes it back",
    ),
    ("/model", "NAME", "goes on with another model; alone, it lists them"),
    ("/clear", "", "begins a new conversation"),
    ("/undo", "", "takes the last question and its answer back"),
    ("/retry", "", "asks the last question again"),
    ("/save", "FILE", "writes the conversation as the body of a request"),
    ("/load", "FILE", "goes on with a conversation that was saved"),
    ("/stats", "", "tells of the last answer: speed, tokens, worker"),
    ("/bye", "", "ends the chat, as Ctrl-D does"),
];

/// What encloses a text of several lines.
pub(super) const QUOTES: &str = "\"\"\"";

/// What takes an instruction back.
const NONE: &str = "none";

/// The commands, for completion.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    HELP.iter().map(|(name, ..)| *name)
}

/// What `/help` shows.
pub(super) fn help() -> String {
    let mut text = String::new();
    for (name, argument, what) in HELP {
        text.push_str(&format!("{:<17}  {what}\n", format!("{name} {argument}").trim_end()));
    }
    text.push_str(
        "\nTab completes commands, names and files; the arrows find what you typed before.\n\
         Three quotes (\"\"\") begin and end a text of several lines. A text that begins\n\
         with a slash is sent with a space before it. Ctrl-C stops an answer.\n",
    );
    text
}

/// Whether a text of several lines has begun and not ended.
pub(super) fn is_open(input: &str) -> bool {
    input
        .trim_start()
        .strip_prefix(QUOTES)
        .is_some_and(|rest| !rest.trim_end().ends_with(QUOTES))
}

/// What the user typed.
pub(super) fn parse(input: &str) -> Line {
    let trimmed = input.trim();
    if let Some(quoted) = trimmed.strip_prefix(QUOTES) {
        let text = quoted.strip_suffix(QUOTES).unwrap_or(quoted).trim_matches('\n');
        return match text.trim().is_empty() {
            true => Line::Empty,
            false => Line::Say(text.to_owned()),
        };
    }
    if trimmed.is_empty() {
        return Line::Empty;
    }
    if !input.starts_with('/') {
        return Line::Say(trimmed.to_owned());
    }
    let (name, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
    match command(name, rest.trim()) {
        Ok(command) => Line::Command(command),
        Err(why) => Line::Wrong(why),
    }
}

fn command(name: &str, rest: &str) -> Result<Command, String> {
    let given = (!rest.is_empty()).then(|| rest.to_owned());
    let file = || match rest {
        "" => Err(format!("{name} needs the name of a file")),
        rest => Ok(PathBuf::from(rest)),
    };
    let command = match name {
        "/help" | "/?" => Command::Help,
        "/set" => Command::Set(setting(rest)?),
        "/system" if rest == NONE => Command::System(Some(String::new())),
        "/system" => Command::System(given),
        "/model" => Command::Model(given),
        "/clear" => Command::Clear,
        "/undo" => Command::Undo,
        "/retry" => Command::Retry,
        "/save" => Command::Save(file()?),
        "/load" => Command::Load(file()?),
        "/stats" => Command::Stats,
        "/bye" | "/exit" | "/quit" => Command::Bye,
        _ => {
            return Err(format!(
                "there is no command {name}; /help shows them, and a space before it sends it to the model"
            ));
        }
    };
    let takes_something = HELP
        .iter()
        .any(|(known, argument, _)| *known == name && !argument.is_empty());
    match rest.is_empty() || takes_something {
        true => Ok(command),
        false => Err(format!("{name} stands alone, without `{rest}`")),
    }
}

fn setting(rest: &str) -> Result<Option<(String, String)>, String> {
    match rest.split_once(char::is_whitespace) {
        Some((name, value)) => Ok(Some((name.to_owned(), value.trim().to_owned()))),
        None if rest.is_empty() => Ok(None),
        None => Err(format!(
            "write a value behind it, `/set {rest} VALUE`; /set alone shows all"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_for_the_model_unless_it_begins_with_a_slash() {
        assert_eq!(parse("  hello there "), Line::Say("hello there".into()));
        assert_eq!(parse(" /etc is what?"), Line::Say("/etc is what?".into()));
        assert_eq!(parse(" \t "), Line::Empty);
        let Line::Wrong(why) = parse("/etc is what?") else {
            panic!("no command")
        };
        assert!(
            why.contains("/etc") && why.contains("/help") && why.contains("a space"),
            "{why}"
        );
    }

    #[test]
    fn three_quotes_enclose_a_text_of_several_lines() {
        assert!(is_open("\"\"\"one"));
        assert!(is_open("\"\"\"one\ntwo"));
        assert!(!is_open("\"\"\"one\ntwo\"\"\""));
        assert!(!is_open("one"));
        assert!(is_open("\"\"\""), "the quotes that begin it do not end it");
        assert_eq!(parse("\"\"\"\none\n  two\n\"\"\""), Line::Say("one\n  two".into()));
        assert_eq!(parse("\"\"\"\n\"\"\""), Line::Empty);
    }

    #[test]
    fn commands_take_what_they_need_and_nothing_else() {
        let said = |line| match parse(line) {
            Line::Command(command) => command,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(
            said("/set temperature 0.5"),
            Command::Set(Some(("temperature".into(), "0.5".into())))
        );
        assert_eq!(said("/set"), Command::Set(None));
        assert_eq!(said("/system  Be brief. "), Command::System(Some("Be brief.".into())));
        assert_eq!(said("/system none"), Command::System(Some(String::new())));
        assert_eq!(said("/save a b.json"), Command::Save("a b.json".into()));
        assert_eq!(said("/bye"), Command::Bye);
        for (line, why) in [
            ("/set top_p", "VALUE"),
            ("/save", "name of a file"),
            ("/clear all", "alone"),
            ("/exit now", "alone"),
        ] {
            assert!(matches!(parse(line), Line::Wrong(text) if text.contains(why)), "{line}");
        }
    }

    #[test]
    fn the_help_names_every_command_and_fits_a_terminal() {
        let help = help();
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
        for name in names() {
            assert!(help.contains(name), "{name}");
            let line = match name {
                "/save" | "/load" => format!("{name} file"),
                _ => name.to_owned(),
            };
            assert!(matches!(parse(&line), Line::Command(_)), "{name}");
        }
    }
}
