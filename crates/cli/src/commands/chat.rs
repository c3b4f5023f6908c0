//! The interactive chat.

use hypura_engine::{ChatTemplate, Finish, Message};

use crate::commands::conversation::{Conversation, NotKept};
use crate::commands::lines::{Line, Lines};
use crate::commands::run::Running;
use crate::failure::{Interrupted, UsageError, sentence};
use crate::output::say;

const HELP: &str = "  \
  /help            this text
  /clear           forget the conversation
  /system TEXT     begin anew with this system message
  /retry           answer the last message again
  /save NAME       keep the conversation as it is now under this name
  /load NAME       go on with the conversation of this name
  /fork NAME       go on under this name, and leave the conversation so far as it is
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
    Save(String),
    Load(String),
    Fork(String),
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
            "save" => Input::Save(rest.trim().to_owned()),
            "load" => Input::Load(rest.trim().to_owned()),
            "fork" => Input::Fork(rest.trim().to_owned()),
            "bye" | "exit" | "quit" => Input::Leave,
            _ => Input::Unknown(name.to_owned()),
        }
    }
}

pub(crate) fn run(
    running: &Running<'_>,
    template: Option<&ChatTemplate>,
    conversation: &mut Conversation,
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
    let result = talk(running, template, conversation, &mut lines);
    lines.close();
    result
}

fn talk(
    running: &Running<'_>,
    template: &ChatTemplate,
    conversation: &mut Conversation,
    lines: &mut Lines,
) -> anyhow::Result<()> {
    loop {
        running.interrupt.set_idle(!lines.is_terminal());
        if !lines.is_terminal() && running.interrupt.is_pressed() {
            // Just before there was nothing else to stop.
            return Err(Interrupted.into());
        }
        let message = read_message(lines);
        running.interrupt.set_idle(false);
        let Some(line) = message? else { return conversation.end() };
        running.interrupt.reset();
        match Input::parse(&line) {
            Input::Say(text) if text.is_empty() => continue,
            Input::Say(text) => conversation.messages.push(Message::new("user", text)),
            Input::Retry => {
                while conversation.messages.last().is_some_and(|m| m.role == "assistant") {
                    conversation.messages.pop();
                }
                if conversation.messages.last().is_none_or(|m| m.role != "user") {
                    say("There is nothing to answer yet.");
                    continue;
                }
            }
            Input::Clear => {
                let mut opening = std::mem::take(&mut conversation.messages);
                opening.retain(|m| m.role == "system");
                report(conversation.begin_anew(opening).map(|()| "Forgotten.".to_owned()));
                continue;
            }
            Input::System(text) if text.is_empty() => {
                say("There is no text behind /system; /help shows how it is used.");
                continue;
            }
            Input::System(text) => {
                let opening = vec![Message::new("system", text)];
                report(conversation.begin_anew(opening).map(|()| "Begun anew.".to_owned()));
                continue;
            }
            Input::Save(name) => {
                report(conversation.save(&name));
                continue;
            }
            Input::Load(name) => {
                report(conversation.load(&name, running.engine));
                continue;
            }
            Input::Fork(name) => {
                report(conversation.fork(&name));
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
            Input::Leave => return conversation.end(),
        }
        let answer =
            match running.answer(conversation, &template.render(&conversation.messages)?, true) {
                Ok(answer) => answer,
                // It was answered. The next answer is kept with it, if that can be done by then.
                Err(error) if error.is::<NotKept>() => {
                    say(format_args!("hypura: {}", sentence(&error)));
                    continue;
                }
                // The conversation has outgrown the context, or one message has: it can be cleared.
                Err(error) if error.is::<UsageError>() => {
                    say(format_args!("hypura: {}, or /clear", sentence(&error)));
                    conversation.messages.pop();
                    continue;
                }
                Err(error) => return Err(error),
            };
        if answer.finish == Finish::Interrupted {
            // The terminal has echoed ^C.
            say(if answer.text.is_empty() { "\n(stopped)" } else { "(stopped)" });
            running.interrupt.reset();
        }
    }
}

/// Says what was done, or why it can't be: the chat goes on.
fn report(done: anyhow::Result<String>) {
    match done {
        Ok(done) => say(done),
        Err(error) => say(format_args!("hypura: {}", sentence(&error))),
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
            ("/fork b ", Input::Fork("b".into())),
            ("/nope x", Input::Unknown("nope".into())),
        ] {
            assert_eq!(Input::parse(line), input);
        }
    }
}
