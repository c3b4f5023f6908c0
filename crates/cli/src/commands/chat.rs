//! The interactive chat.

use anyhow::Context;
use hypura_engine::{ChatTemplate, Finish, GenerateError, Message};
use rustyline::error::ReadlineError;

use crate::commands::run::Session;

const HELP: &str = "\
  /help            this text
  /clear           forget the conversation
  /system TEXT     begin anew with this system message
  /retry           answer the last message again
  /bye             leave (or Ctrl-D)
  \"\"\"              begins and ends a message of several lines
  Ctrl-C           stops an answer; the chat goes on";

/// Lines of history kept.
const HISTORY_LINES_MAX: usize = 1000;

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    Say(String),
    Help,
    Clear,
    System(String),
    Retry,
    Leave,
    Unknown(String),
}

impl Input {
    fn parse(line: &str) -> Input {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else { return Input::Say(line.to_owned()) };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match name {
            "help" | "?" => Input::Help,
            "clear" => Input::Clear,
            "system" => Input::System(rest.trim().to_owned()),
            "retry" => Input::Retry,
            "bye" | "exit" | "quit" => Input::Leave,
            _ => Input::Unknown(name.to_owned()),
        }
    }
}

pub(crate) fn run(session: &Session<'_>, template: Option<&ChatTemplate>) -> anyhow::Result<()> {
    let chatml;
    let template = match template {
        Some(template) => template,
        None => {
            eprintln!("This model brings no chat template; ChatML is used.");
            chatml = ChatTemplate::chatml()?;
            &chatml
        }
    };
    let mut editor = rustyline::DefaultEditor::new().context("can't read from the terminal")?;
    rustyline::config::Configurer::set_max_history_size(&mut editor, HISTORY_LINES_MAX)
        .context("can't keep a history")?;
    let history = crate::home::data().map(|data| data.join("chat-history.txt"));
    if let Some(path) = &history {
        // There is none at the first time.
        let _ = editor.load_history(path);
    }
    eprintln!("Type a message; /help lists what else there is.");
    let result = talk(session, template, &mut editor);
    if let Some(path) = &history
        && let Some(folder) = path.parent()
    {
        let saved = std::fs::create_dir_all(folder)
            .map_err(ReadlineError::from)
            .and_then(|()| editor.save_history(path));
        if let Err(error) = saved {
            tracing::warn!("the history is not kept: {error}");
        }
    }
    result
}

fn talk(
    session: &Session<'_>,
    template: &ChatTemplate,
    editor: &mut rustyline::DefaultEditor,
) -> anyhow::Result<()> {
    let mut messages = session.opening();
    loop {
        let Some(line) = read_message(editor)? else { return Ok(()) };
        session.interrupt.reset();
        match Input::parse(&line) {
            Input::Say(text) if text.is_empty() => continue,
            Input::Say(text) => messages.push(Message::new("user", text)),
            Input::Retry => {
                while messages.last().is_some_and(|m| m.role == "assistant") {
                    messages.pop();
                }
                if messages.last().is_none_or(|m| m.role != "user") {
                    eprintln!("There is nothing to answer yet.");
                    continue;
                }
            }
            Input::Clear => {
                messages = session.opening();
                eprintln!("Forgotten.");
                continue;
            }
            Input::System(text) => {
                messages = vec![Message::new("system", text)];
                eprintln!("Begun anew.");
                continue;
            }
            Input::Help => {
                eprintln!("{HELP}");
                continue;
            }
            Input::Unknown(name) => {
                eprintln!("There is no /{name}; /help lists what there is.");
                continue;
            }
            Input::Leave => return Ok(()),
        }
        let answer = match session.answer(&template.render(&messages)?) {
            Ok(answer) => answer,
            // The conversation has outgrown the context, or one message has: it can be cleared.
            Err(error)
                if matches!(
                    error.downcast_ref::<GenerateError>(),
                    Some(GenerateError::PromptTooLong { .. })
                ) =>
            {
                eprintln!("hypura: {error:#} (or /clear)");
                messages.pop();
                continue;
            }
            Err(error) => return Err(error),
        };
        if answer.finish == Finish::Interrupted {
            eprintln!("(stopped)");
            session.interrupt.reset();
        }
        messages.push(Message::new("assistant", answer.text));
    }
}

/// One message: a line, or several between `"""`. `None` at the end of the input.
fn read_message(editor: &mut rustyline::DefaultEditor) -> anyhow::Result<Option<String>> {
    const FENCE: &str = "\"\"\"";
    let mut lines: Vec<String> = Vec::new();
    let mut fenced = false;
    loop {
        let line = match editor.readline(if fenced { "... " } else { ">>> " }) {
            Ok(line) => line,
            Err(ReadlineError::Eof) => return Ok(None),
            Err(ReadlineError::Interrupted) => {
                eprintln!("(Ctrl-D or /bye leaves)");
                lines.clear();
                fenced = false;
                continue;
            }
            Err(error) => return Err(error).context("can't read from the terminal"),
        };
        let trimmed = line.trim();
        let (text, ends) = if fenced {
            match trimmed.strip_suffix(FENCE) {
                Some(text) => (text.to_owned(), true),
                None => (line, false),
            }
        } else if let Some(text) = trimmed.strip_prefix(FENCE) {
            fenced = true;
            match text.strip_suffix(FENCE) {
                Some(text) => (text.to_owned(), true),
                None => (text.to_owned(), false),
            }
        } else {
            (line, true)
        };
        lines.push(text);
        if ends {
            let message = lines.join("\n").trim().to_owned();
            if !message.is_empty() {
                // A history that can't grow is no reason to stop.
                let _ = editor.add_history_entry(message.as_str());
            }
            return Ok(Some(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Input;

    #[test]
    fn lines_are_understood() {
        for (line, input) in [
            ("hello", Input::Say("hello".into())),
            ("  hello ", Input::Say("hello".into())),
            ("/help", Input::Help),
            ("/system You are  terse. ", Input::System("You are  terse.".into())),
            ("/bye", Input::Leave),
            ("/nope x", Input::Unknown("nope".into())),
        ] {
            assert_eq!(Input::parse(line), input);
        }
    }
}
