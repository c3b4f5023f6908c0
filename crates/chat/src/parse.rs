//! From a model's text to reasoning, content and tool calls.

/// A piece of what a model said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More of what it thinks.
    Reasoning(String),
    /// More of its answer.
    Content(String),
    /// A tool call begins.
    ToolCallBegin {
        /// Counts the calls of this answer, from 0.
        index: usize,
        /// The model's id of the call, or one that was made up for it.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments: all fragments of a call, joined, are one JSON object.
    ToolCallArguments {
        /// Which call.
        index: usize,
        /// The fragment.
        json: String,
    },
    /// A call is complete. One that the model broke off has no end, and its arguments may be
    /// incomplete JSON.
    ToolCallEnd {
        /// Which call.
        index: usize,
    },
}

/// Takes a model's text apart as it comes.
#[derive(Debug, Clone)]
pub struct Parser {
    in_reasoning: bool,
}

impl Parser {
    pub(crate) fn new(in_reasoning: bool) -> Parser {
        Parser { in_reasoning }
    }

    /// Takes more text. The result may be empty: what may be the beginning of a marker is held
    /// back.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        vec![match self.in_reasoning {
            true => Delta::Reasoning(text.to_owned()),
            false => Delta::Content(text.to_owned()),
        }]
    }

    /// The text has ended: gives out what was held back.
    pub fn finish(&mut self) -> Vec<Delta> {
        Vec::new()
    }

    /// Whether the text so far ends within reasoning.
    pub fn is_in_reasoning(&self) -> bool {
        self.in_reasoning
    }
}
