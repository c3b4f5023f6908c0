//! How a model writes reasoning and tool calls.

use crate::message::Tool;
use crate::parse::Parser;

/// How a model writes reasoning and tool calls, found by looking at its template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Format {
    thinks: bool,
}

impl Format {
    /// The format of a model with this template.
    pub fn detect(template: &str) -> Format {
        Format { thinks: template.contains("</think>") }
    }

    /// A parser for what follows the rendered `prompt`, whose end may have opened the reasoning.
    /// Without `tools`, tool calls are content like any other.
    pub fn parser(&self, prompt: &str, _tools: &[Tool]) -> Parser {
        Parser::new(self.thinks && prompt.trim_end().ends_with("<think>"))
    }

    /// A Lark grammar, as llguidance reads it, of a call of one of these tools, or if `parallel` of
    /// one or more calls. `None` if this model's syntax can't be forced.
    pub fn forced_call(&self, _tools: &[Tool], _parallel: bool) -> Option<String> {
        None
    }

    /// The text that ends the reasoning, such as `</think>`; `None` if the model doesn't reason.
    pub fn reasoning_end(&self) -> Option<&str> {
        self.thinks.then_some("</think>")
    }
}

impl Format {
    pub(crate) fn with_described_tools(self) -> Format {
        self
    }

    pub(crate) fn with_stop(self, _eos: &str) -> Format {
        self
    }
}
