//! How a model writes reasoning and tool calls.

mod grammar;
mod reasoning;
mod table;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

pub(crate) use reasoning::Marks;
pub(crate) use table::{
    BARE, Body, COMMAND_R, FENCED, HARMONY, HERMES, OLD_MISTRAL, PYTHON, SYNTAXES, Syntax, Tags,
};

use crate::message::{Tool, ToolCall};
use crate::parse::Parser;

/// How a model writes reasoning and tool calls, found by looking at its template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Format(Arc<Parts>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) reasoning: Option<&'static Marks>,
    /// The syntaxes to be read; the first is the one to be written.
    pub(crate) calls: Vec<&'static Syntax>,
    /// Marks that are dropped.
    pub(crate) wrappers: Vec<&'static str>,
    /// Tokens that are dropped at the end.
    pub(crate) stops: Vec<String>,
}

impl Format {
    /// The format of a model with this template.
    ///
    /// A template that shows no syntax for calls gets the ones that models are most likely to fall
    /// into: JSON, bare or fenced, and Python's calls. They count as calls only if they name a tool
    /// that there is.
    pub fn detect(template: &str) -> Format {
        let mut found = SYNTAXES
            .iter()
            .filter(|syntax| syntax.template.iter().all(|text| template.contains(text)));
        let first = found.next().copied();
        let calls = match first {
            Some(syntax) if syntax.name == "llama3" => vec![syntax, &BARE],
            Some(syntax) if syntax.name == "llama4" => vec![syntax, &PYTHON, &BARE],
            Some(syntax) if syntax.name == "lfm2" => vec![syntax, &PYTHON],
            Some(syntax) if syntax.name == "command-r" => vec![syntax, &COMMAND_R],
            Some(syntax) => vec![syntax],
            None => vec![&BARE, &FENCED, &PYTHON],
        };
        let channels = first == Some(&HARMONY);
        Format(Arc::new(Parts {
            reasoning: reasoning::detect(template, channels),
            calls,
            wrappers: reasoning::wrappers(template),
            stops: reasoning::stops(template),
        }))
    }

    /// A parser for what follows the rendered `prompt`, whose end may have opened the reasoning.
    /// Without `tools`, tool calls are content like any other.
    pub fn parser(&self, prompt: &str, tools: &[Tool]) -> Parser {
        Parser::new(Arc::clone(&self.0), prompt, tools)
    }

    /// A Lark grammar, in llguidance's dialect, of a call of one of these tools, or if `parallel`
    /// of one or more calls. `None` if this model's syntax can't be forced.
    ///
    /// It begins where the answer does, behind the reasoning if there is any. Each of the model's
    /// marks is a string literal of its own, so that whoever knows the vocabulary can replace those
    /// that are control tokens; each schema is a rule of its own on one line, `NAME: %json SCHEMA`.
    pub fn forced_call(&self, tools: &[Tool], parallel: bool) -> Option<String> {
        let syntax = self.0.calls.first()?;
        grammar::write(syntax, tools, parallel)
    }

    /// The text that ends the reasoning, such as `</think>`; `None` if the model doesn't reason.
    pub fn reasoning_end(&self) -> Option<&str> {
        self.0.reasoning.map(|marks| marks.close)
    }

    /// Calls as this model writes them; `None` if we can't write its syntax.
    pub(crate) fn write_calls(&self, calls: &[ToolCall]) -> Option<String> {
        write::calls(self.0.calls.first()?, calls)
    }

    /// The format of a model that was told of its tools by us (see `shape.rs`). What it learned may
    /// still be stronger.
    pub(crate) fn with_described_tools(self) -> Format {
        let mut calls = vec![&HERMES];
        calls.extend(self.0.calls.iter().filter(|syntax| syntax.is_sure() && **syntax != &HERMES));
        calls.extend([&FENCED, &BARE]);
        Format(Arc::new(Parts { calls, ..Parts::clone(&self.0) }))
    }

    /// The same, with the text of the token that ends an answer.
    pub(crate) fn with_stop(self, eos: &str) -> Format {
        let mut parts = Parts::clone(&self.0);
        if !eos.is_empty() && !parts.stops.iter().any(|stop| stop == eos) {
            parts.stops.push(eos.to_owned());
        }
        Format(Arc::new(parts))
    }
}
