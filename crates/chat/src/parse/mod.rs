//! From a model's text to reasoning, content and tool calls.
//!
//! Running text is searched for marks ([`marks`]); a call is read character by character, by a
//! reader for its syntax ([`call`]). So a result never depends on how the text was cut.

mod call;
mod channel;
mod gemma;
mod json_call;
mod literal;
mod marks;
mod named;
mod python;
mod scan;
mod tagged;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use call::{Call, Event, Step};
use channel::{Channel, HEADER_BYTES_MAX};
use json_call::JsonCall;
use marks::{Action, Marks, Next, Place};
use named::{NamedCall, NamedMarks};
use python::PythonCall;
use tagged::TaggedCall;

use crate::format::{Body, HARMONY, OLD_MISTRAL, Parts, Syntax};
use crate::id;
use crate::message::Tool;

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
        /// The model's id of the call, or else one made of the prompt and the index.
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

/// Takes a model's text apart as it comes. Control tokens must be in the text as their names.
#[derive(Debug, Clone)]
pub struct Parser {
    marks: Marks,
    channels: bool,
    tools: Arc<[Tool]>,
    prompt_hash: u64,
    state: State,
    /// Text that was not looked at yet.
    buffer: String,
    in_reasoning: bool,
    /// Nothing was said so far but blanks and reasoning.
    is_fresh: bool,
    /// Blanks that may stand before a call or the end of reasoning, and then mean nothing.
    blanks: String,
    /// Tokens that end an answer, if it does end there.
    stops: String,
    /// Blanks behind reasoning or a call mean nothing.
    drops_blanks: bool,
    calls: usize,
    out: Vec<Delta>,
}

#[derive(Debug, Clone)]
enum State {
    /// Running text.
    Text,
    /// Between calls.
    Group(Group),
    /// Within a call.
    Call(Group, Box<Call>),
    /// Within a header.
    Header(String),
}

/// A group of calls.
#[derive(Debug, Clone)]
struct Group {
    syntax: &'static Syntax,
    /// Calls that were complete.
    complete: usize,
    /// Whether the call at hand was given out.
    begun: bool,
    /// Whether a list is open.
    in_list: bool,
    /// What was read and not given out: content if this is no call.
    raw: String,
    /// The end of `raw` that may become a mark.
    mark: String,
}

impl Group {
    fn new(syntax: &'static Syntax, raw: String) -> Group {
        let mark = String::new();
        Group { syntax, complete: 0, begun: false, in_list: false, raw, mark }
    }
}

impl Parser {
    pub(crate) fn new(parts: Arc<Parts>, prompt: &str, tools: &[Tool]) -> Parser {
        let mut parser = Parser {
            marks: Marks::new(&parts),
            channels: parts.calls.contains(&&HARMONY),
            tools: tools.into(),
            prompt_hash: id::hash(0, prompt.as_bytes()),
            state: State::Text,
            buffer: String::new(),
            in_reasoning: false,
            is_fresh: true,
            blanks: String::new(),
            stops: String::new(),
            drops_blanks: parts.reasoning.is_some(),
            calls: 0,
            out: Vec::new(),
        };
        parser.open(&parts, prompt);
        parser
    }

    /// Takes up what the prompt has begun.
    fn open(&mut self, parts: &Parts, prompt: &str) {
        if self.channels {
            if let Some(header) = channel::opened(prompt) {
                match header.split_once(channel::MESSAGE) {
                    Some((header, _)) => self.enter(&channel::read(header, false)),
                    None => self.state = State::Header(header),
                }
            }
            return;
        }
        self.in_reasoning =
            parts.reasoning.is_some_and(|marks| prompt.trim_end().ends_with(marks.open.trim_end()));
        let named = parts.calls.iter().copied().find(|syntax| !syntax.content_name.is_empty());
        if let Some(syntax) = named.filter(|syntax| prompt.ends_with(syntax.call.0)) {
            self.begin_call(Group::new(syntax, String::new()), None);
        }
    }

    /// Takes more text. The result may be empty: what may be the beginning of a mark is held back.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.buffer.push_str(text);
        self.run(false);
        std::mem::take(&mut self.out)
    }

    /// The text has ended: gives out what was held back. A parser that has finished says nothing
    /// more.
    pub fn finish(&mut self) -> Vec<Delta> {
        loop {
            self.run(true);
            match std::mem::replace(&mut self.state, State::Text) {
                State::Text => break,
                // One that was never ended, or none at all.
                State::Header(header) if header.contains("<|") => {}
                State::Header(header) => self.say(header.trim_start_matches("assistant")),
                State::Group(group) if group.complete > 0 => self.after_call(group.raw),
                State::Group(group) => self.reject(group),
                State::Call(mut group, mut call) => match call.finish() {
                    Step::Done(_) => self.end_call(&mut group),
                    _ => self.reject(group),
                },
            }
        }
        if !self.drops_blanks && self.stops.is_empty() {
            let blanks = std::mem::take(&mut self.blanks);
            self.give(blanks);
        }
        self.blanks.clear();
        self.stops.clear();
        std::mem::take(&mut self.out)
    }

    /// Whether the text so far ends within reasoning.
    pub fn is_in_reasoning(&self) -> bool {
        self.in_reasoning && matches!(self.state, State::Text)
    }

    fn run(&mut self, ended: bool) {
        loop {
            let advances = match &self.state {
                State::Text => self.text(ended),
                _ => self.characters(),
            };
            if !advances {
                return;
            }
        }
    }

    /// Goes over running text up to the next mark; false if there is none.
    fn text(&mut self, ended: bool) -> bool {
        let place = Place {
            in_reasoning: self.in_reasoning,
            is_fresh: self.is_fresh,
            has_tools: !self.tools.is_empty(),
        };
        match self.marks.next(&self.buffer, place, ended) {
            Next::Text(bytes) => {
                let rest = self.buffer.split_off(bytes);
                let text = std::mem::replace(&mut self.buffer, rest);
                self.say(&text);
                false
            }
            Next::Mark { at, bytes, action } => {
                let rest = self.buffer.split_off(at + bytes);
                let mut text = std::mem::replace(&mut self.buffer, rest);
                let mark = text.split_off(at);
                self.say(&text);
                self.act(action, mark);
                true
            }
        }
    }

    fn act(&mut self, action: Action, mark: String) {
        match action {
            Action::Think | Action::Answer => {
                self.in_reasoning = action == Action::Think;
                self.restart();
            }
            Action::Calls { syntax, is_call } => {
                self.in_reasoning = false;
                let group = Group::new(syntax, mark);
                match is_call {
                    true => self.begin_call(group, None),
                    false => self.state = State::Group(group),
                }
            }
            Action::Bare { syntax } => {
                self.buffer.insert_str(0, &mark);
                self.state = State::Group(Group::new(syntax, String::new()));
            }
            Action::Header if mark == channel::MESSAGE => {}
            Action::Header => self.state = State::Header(mark.replace("<|start|>", "")),
            Action::MessageEnd => {
                self.in_reasoning = false;
                self.restart();
            }
            Action::Drop => {}
            Action::Stop => {
                let blanks = std::mem::take(&mut self.blanks);
                match self.stops.is_empty() {
                    // Those before it are the answer's.
                    true if !self.drops_blanks => self.give(blanks),
                    true => {}
                    false => self.stops.push_str(&blanks),
                }
                self.stops.push_str(&mark);
            }
        }
    }

    /// Blanks around here mean nothing.
    fn restart(&mut self) {
        self.blanks.clear();
        self.drops_blanks = true;
    }

    /// Gives out text, but keeps the blanks at its end.
    fn say(&mut self, text: &str) {
        let said = text.trim_end();
        if said.is_empty() {
            self.blanks.push_str(text);
            return;
        }
        let blanks = std::mem::take(&mut self.blanks);
        let stops = std::mem::take(&mut self.stops);
        let (blanks, said) = match self.drops_blanks && stops.is_empty() {
            true => ("", said.trim_start()),
            false => (blanks.as_str(), said),
        };
        self.drops_blanks = false;
        self.is_fresh = self.is_fresh && self.in_reasoning;
        self.give([&stops, blanks, said].concat());
        self.blanks = text.get(text.trim_end().len()..).unwrap_or_default().to_owned();
    }

    fn give(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        match (self.out.last_mut(), self.in_reasoning) {
            (Some(Delta::Reasoning(last)), true) | (Some(Delta::Content(last)), false) => {
                last.push_str(&text);
            }
            (_, true) => self.out.push(Delta::Reasoning(text)),
            (_, false) => self.out.push(Delta::Content(text)),
        }
    }

    /// Feeds characters to a header or a call until that is over; false if they run out.
    fn characters(&mut self) -> bool {
        let buffer = std::mem::take(&mut self.buffer);
        let mut chars = buffer.chars();
        while let Some(c) = chars.next() {
            let again = match std::mem::replace(&mut self.state, State::Text) {
                State::Text => c.to_string(),
                State::Header(header) => self.header(header, c),
                State::Group(group) => self.between(group, c),
                State::Call(group, call) => self.within(group, call, c),
            };
            if matches!(self.state, State::Text) || !again.is_empty() {
                // What was given back to the buffer comes first.
                self.buffer.push_str(&again);
                self.buffer.push_str(chars.as_str());
                return true;
            }
        }
        false
    }

    /// One more character of a header.
    fn header(&mut self, mut header: String, c: char) -> String {
        header.push(c);
        if let Some(header) = header.strip_suffix(channel::MESSAGE) {
            self.enter(&channel::read(header, !self.tools.is_empty()));
            return String::new();
        }
        if header.len() > HEADER_BYTES_MAX {
            self.say(header.trim_start_matches("assistant"));
            return String::new();
        }
        self.state = State::Header(header);
        String::new()
    }

    fn enter(&mut self, channel: &Channel) {
        self.in_reasoning = *channel == Channel::Reasoning;
        if let Channel::Call(name) = channel {
            let mut group = Group::new(&HARMONY, String::new());
            self.begin(&mut group, name.clone(), None);
            self.state = State::Call(group, Box::new(Call::Named(NamedCall::arguments())));
        }
    }

    /// One more character between calls. Returns what has to be read again.
    fn between(&mut self, mut group: Group, c: char) -> String {
        let syntax = group.syntax;
        let close = syntax.group.1.trim();
        group.raw.push(c);
        if c.is_whitespace() && group.mark.is_empty() {
            self.state = State::Group(group);
            return String::new();
        }
        if syntax.call.0.is_empty() && group.mark.is_empty() {
            let ends_list = c == ']' && group.in_list;
            if ends_list && close.is_empty() {
                self.leave(&group);
                return String::new();
            }
            let opens_list = c == '[' && !group.in_list && group.complete == 0;
            if ends_list || opens_list || (matches!(c, ',' | ';') && group.complete > 0) {
                group.in_list = opens_list || (group.in_list && !ends_list);
                self.state = State::Group(group);
                return String::new();
            }
            if self.begins_call(&group, c) {
                group.raw.pop();
                self.begin_call(group, Some(c));
                return c.to_string();
            }
        }
        group.mark.push(c);
        if !close.is_empty() && group.mark == close {
            self.leave(&group);
        } else if !syntax.call.0.is_empty() && group.mark == syntax.call.0 {
            self.begin_call(group, None);
        } else if close.starts_with(&group.mark) || syntax.call.0.starts_with(&group.mark) {
            self.state = State::Group(group);
        } else if group.complete > 0 {
            self.after_call(group.raw);
        } else {
            self.reject(group);
        }
        String::new()
    }

    fn begins_call(&self, group: &Group, c: char) -> bool {
        match group.syntax.body {
            Body::Json { .. } if c == '{' => true,
            // Python's calls have no mark that tells them from JSON.
            Body::Json { .. } => {
                let marked = group.syntax.group.0 == "<|python_tag|>";
                c.is_alphabetic() && (marked || (!group.syntax.is_sure() && group.in_list))
            }
            Body::Python => c.is_alphabetic() || c == '_',
            _ => false,
        }
    }

    /// A call begins, behind its mark or with its first character.
    fn begin_call(&mut self, mut group: Group, first: Option<char>) {
        let syntax = group.syntax;
        let close = syntax.call.1;
        let call = match syntax.body {
            Body::Json { .. } if first != Some('{') => Call::Python(PythonCall::new()),
            Body::Json { name, .. } => Call::Json(JsonCall::new(name.is_empty())),
            Body::Named { before, id, head_end, tail: _ } => {
                // Marks are compared without the line breaks that models leave out.
                let head_end = head_end.trim();
                let head_end = if head_end.is_empty() { "\n" } else { head_end };
                Call::Named(NamedCall::new(NamedMarks { before, id, head_end, close }))
            }
            Body::Tagged(tags) => {
                Call::Tagged(TaggedCall::new(tags, close, Arc::clone(&self.tools)))
            }
            Body::Python => Call::Python(PythonCall::new()),
            Body::Gemma => Call::Gemma(gemma::GemmaCall::new(close)),
        };
        group.begun = false;
        group.mark.clear();
        self.state = State::Call(group, Box::new(call));
    }

    /// One more character of a call. Returns what has to be read again.
    fn within(&mut self, mut group: Group, mut call: Box<Call>, c: char) -> String {
        // No name begins like that: it is the list of a model's older versions.
        if c == '[' && group.raw == OLD_MISTRAL.group.0 {
            return self.between(Group::new(&OLD_MISTRAL, group.raw), c);
        }
        group.raw.push(c);
        let mut events = Vec::new();
        let step = call.feed(c, &mut events);
        for event in events {
            match event {
                Event::Begin { name, .. } if name == group.syntax.content_name => {
                    self.restart();
                    return String::new();
                }
                Event::Begin { name, id } => {
                    let known = self.tools.iter().any(|tool| tool.name == name);
                    if self.tools.is_empty() || !(known || group.syntax.is_sure()) {
                        self.reject(group);
                        return String::new();
                    }
                    self.begin(&mut group, name, id);
                }
                Event::Arguments(json) => {
                    group.raw.clear();
                    self.argue(json);
                }
            }
        }
        match step {
            Step::More => self.state = State::Call(group, call),
            Step::Done(rest) => {
                self.end_call(&mut group);
                match group.syntax == &HARMONY {
                    true => self.state = State::Text,
                    false => self.state = State::Group(group),
                }
                return rest;
            }
            Step::Failed => self.reject(group),
        }
        String::new()
    }

    fn begin(&mut self, group: &mut Group, name: String, id: Option<String>) {
        self.is_fresh = false;
        self.in_reasoning = false;
        self.restart();
        group.begun = true;
        group.raw.clear();
        let index = self.calls;
        let id = id.unwrap_or_else(|| id::of_call(self.prompt_hash, index));
        self.calls += 1;
        self.out.push(Delta::ToolCallBegin { index, id, name });
    }

    fn argue(&mut self, json: String) {
        let current = self.calls.saturating_sub(1);
        match self.out.last_mut() {
            Some(Delta::ToolCallArguments { json: last, .. }) => last.push_str(&json),
            _ => self.out.push(Delta::ToolCallArguments { index: current, json }),
        }
    }

    fn end_call(&mut self, group: &mut Group) {
        group.complete += 1;
        group.begun = false;
        group.raw.clear();
        group.mark.clear();
        self.restart();
        self.out.push(Delta::ToolCallEnd { index: self.calls.saturating_sub(1) });
    }

    /// A group has ended as it should. An empty one was nothing.
    fn leave(&mut self, group: &Group) {
        if group.complete == 0 {
            self.say(&group.raw);
        }
    }

    /// Behind calls there is something else.
    fn after_call(&mut self, raw: String) {
        self.buffer.insert_str(0, &raw);
    }

    /// What looked like a call is none: its first mark is content, the rest is read again.
    fn reject(&mut self, group: Group) {
        let mut raw = group.raw;
        let first =
            raw.chars().take_while(|c| c.is_whitespace()).map(char::len_utf8).sum::<usize>();
        let next = raw.get(first..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        let rest = raw.split_off(first + next);
        self.say(&raw);
        self.buffer.insert_str(0, &rest);
    }
}
