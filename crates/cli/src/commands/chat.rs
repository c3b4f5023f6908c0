//! The interactive chat.

use hypura_engine::{ChatTemplate, Finish, Message};

use crate::commands::lines::{Line, Lines};
use crate::commands::run::Session;
use crate::failure::{Interrupted, UsageError, sentence};
use crate::output::say;

const HELP: &str = "  \
  /help            this text
  /clear           forget the conversation
  /system TEXT     begin anew with this system message
  /retry           answer the last message again
  /bye             leave (or Ctrl-D)
  \"\"\"              begins and ends a message of several lines
  Ctrl-C           stops an answer; the chat goes on";

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

pub(crate) fn run(
    session: &Session<'_>,
    template: Option<&ChatTemplate>,
    mut lines: Lines,
) -> anyhow::Result<()> {
    let chatml;
    let template = match template {
        Some(template) => template,
        None => {
            say("This model brings no chat template; ChatML is used.");
            chatml = ChatTemplate::chatml()?;
            &chatml
        }
    };
    say("Type a message; /help lists what else there is.");
    let result = talk(session, template, &mut lines);
    lines.close();
    result
}

fn talk(session: &Session<'_>, template: &ChatTemplate, lines: &mut Lines) -> anyhow::Result<()> {
    let mut messages = session.opening();
    loop {
        session.interrupt.set_idle(!lines.is_terminal());
        if !lines.is_terminal() && session.interrupt.is_pressed() {
            // Just before there was nothing else to stop.
            return Err(Interrupted.into());
        }
        let message = read_message(lines);
        session.interrupt.set_idle(false);
        let Some(line) = message? else { return Ok(()) };
        session.interrupt.reset();
        match Input::parse(&line) {
            Input::Say(text) if text.is_empty() => continue,
            Input::Say(text) => messages.push(Message::new("user", text)),
            Input::Retry => {
                while messages.last().is_some_and(|m| m.role == "assistant") {
                    messages.pop();
                }
                if messages.last().is_none_or(|m| m.role != "user") {
                    say("There is nothing to answer yet.");
                    continue;
                }
            }
            Input::Clear => {
                messages.retain(|m| m.role == "system");
                say("Forgotten.");
                continue;
            }
            Input::System(text) if text.is_empty() => {
                say("There is no text behind /system; /help shows how it is used.");
                continue;
            }
            Input::System(text) => {
                messages = vec![Message::new("system", text)];
                say("Begun anew.");
                continue;
            }
            Input::Help => {
                say(HELP);
                continue;
            }
            Input::Unknown(name) => {
                say(format_args!("There is no /{name}; /help lists what there is."));
                continue;
            }
            Input::Leave => return Ok(()),
        }
        let answer = match session.answer(&template.render(&messages)?, true) {
            Ok(answer) => answer,
            // The conversation has outgrown the context, or one message has: it can be cleared.
            Err(error) if error.is::<UsageError>() => {
                say(format_args!("hypura: {}, or /clear", sentence(&error)));
                messages.pop();
                continue;
            }
            Err(error) => return Err(error),
        };
        if answer.finish == Finish::Interrupted {
            // The terminal has echoed ^C.
            say(if answer.text.is_empty() { "\n(stopped)" } else { "(stopped)" });
            session.interrupt.reset();
        }
        messages.push(Message::new("assistant", answer.text));
    }
}

/// One message: a line, or several between `"""` (the end of the input ends one too). `None` at the
/// end of the input.
fn read_message(lines: &mut Lines) -> anyhow::Result<Option<String>> {
    const FENCE: &str = "\"\"\"";
    let mut message: Vec<String> = Vec::new();
    let mut fenced = false;
    loop {
        let line = match lines.read(if fenced { "... " } else { ">>> " })? {
            Line::Text(line) => line,
            Line::End if fenced => break,
            Line::End => return Ok(None),
            Line::Interrupted => {
                say("(Ctrl-D or /bye leaves)");
                message.clear();
                fenced = false;
                continue;
            }
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
        message.push(text);
        if ends {
            break;
        }
    }
    let message = message.join("\n").trim().to_owned();
    lines.remember(&message);
    Ok(Some(message))
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
