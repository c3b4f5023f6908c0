//! How a template wants its messages, found out by trying.
//!
//! Templates differ in what they take: some have no place for a system message, some want contents
//! as lists of parts, some want arguments as JSON text, some look at reasoning under another name.
//! At the start a few small conversations are rendered in the usual shape and, where what was put
//! in does not come out, in the others. llama.cpp does the same (`common/jinja/caps.cpp`).

use serde_json::{Map, Value, json};

use crate::format::Format;
use crate::json::spaced;
use crate::message::{Message, Think, Tool, ToolCall};

/// How a template wants its messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Contents are lists of parts.
    pub(crate) parts: bool,
    /// System messages become part of the first message of the user.
    pub(crate) no_system: bool,
    /// Neighbours of the same role become one.
    pub(crate) alternating: bool,
    /// Without tools, there is an empty list of them rather than `None`.
    pub(crate) empty_tools: bool,
    /// There is a role `developer`.
    pub(crate) developer: bool,
    /// Tools are described in the system message.
    pub(crate) tools_as_text: bool,
    /// Calls are written into the content, in the model's syntax.
    pub(crate) calls_as_text: bool,
    /// Results are messages of the user.
    pub(crate) results_as_text: bool,
    /// How calls are given.
    pub(crate) calls: Calls,
    /// Where reasoning is put.
    pub(crate) reasoning: Thoughts,
}

/// How calls are given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Arguments are JSON text.
    pub(crate) text: bool,
    /// A message without content has `None`, not an empty text.
    pub(crate) null_content: bool,
}

/// Where reasoning is put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Thoughts {
    /// In `reasoning_content`.
    #[default]
    ReasoningContent,
    /// In `reasoning`.
    Reasoning,
    /// In `thinking`.
    Thinking,
    /// In a part of the content, of type `thinking`.
    Part,
}

/// What is given up, in this order, when a template refuses a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Concession {
    /// Nothing.
    #[default]
    None,
    /// Ids of calls become nine letters and digits, which Mistral's templates insist on.
    ShortIds,
    /// Reasoning of earlier answers is left out.
    NoReasoning,
    /// Neighbours of one role become one, and system messages the first.
    Merged,
}

impl Concession {
    pub(crate) const ALL: [Concession; 4] =
        [Concession::None, Concession::ShortIds, Concession::NoReasoning, Concession::Merged];
}

/// Between texts that were messages of their own.
const GAP: &str = "\n\n";

impl Shape {
    /// The messages and tools as this template wants them.
    pub(crate) fn messages(
        &self,
        messages: &[Message],
        tools: &[Tool],
        format: &Format,
        concession: Concession,
    ) -> Value {
        let mut messages = messages.to_vec();
        if !self.developer {
            for message in messages.iter_mut().filter(|message| message.role == "developer") {
                "system".clone_into(&mut message.role);
            }
        }
        name_results(&mut messages);
        if concession >= Concession::ShortIds {
            shorten_ids(&mut messages);
        }
        if concession >= Concession::NoReasoning {
            messages.iter_mut().for_each(|message| message.reasoning = None);
        }
        if self.calls_as_text {
            calls_to_text(&mut messages, format);
        }
        if self.results_as_text {
            results_to_text(&mut messages);
        }
        if self.tools_as_text && !tools.is_empty() {
            describe(&mut messages, tools);
        }
        if concession >= Concession::Merged {
            gather_system(&mut messages);
        }
        if self.no_system {
            system_to_user(&mut messages);
        }
        if self.alternating || concession >= Concession::Merged {
            merge_neighbours(&mut messages);
        }
        Value::Array(messages.iter().map(|message| self.message(message)).collect())
    }

    /// The tools as this template wants them: if there are none, `None`, as Hugging Face passes it.
    pub(crate) fn tools(&self, tools: &[Tool]) -> Value {
        if tools.is_empty() && !self.empty_tools {
            return Value::Null;
        }
        tools.iter().map(|tool| json!(tool)).collect()
    }

    fn message(&self, message: &Message) -> Value {
        let mut map = Map::new();
        map.insert("role".to_owned(), json!(message.role));
        let has_calls = !message.tool_calls.is_empty();
        let content = match &message.reasoning {
            Some(reasoning) if self.reasoning == Thoughts::Part => json!([
                {"type": "thinking", "thinking": reasoning},
                {"type": "text", "text": message.content},
            ]),
            _ if has_calls && message.content.is_empty() && self.calls.null_content => Value::Null,
            _ if self.parts => json!([{"type": "text", "text": message.content}]),
            _ => json!(message.content),
        };
        map.insert("content".to_owned(), content);
        let key = match self.reasoning {
            Thoughts::ReasoningContent => Some("reasoning_content"),
            Thoughts::Reasoning => Some("reasoning"),
            Thoughts::Thinking => Some("thinking"),
            Thoughts::Part => None,
        };
        if let (Some(key), Some(reasoning)) = (key, &message.reasoning) {
            map.insert(key.to_owned(), json!(reasoning));
        }
        if has_calls {
            let calls = message.tool_calls.iter().map(|call| self.call(call)).collect();
            map.insert("tool_calls".to_owned(), calls);
        }
        if let Some(id) = &message.tool_call_id {
            map.insert("tool_call_id".to_owned(), json!(id));
        }
        if let Some(name) = &message.name {
            map.insert("name".to_owned(), json!(name));
        }
        Value::Object(map)
    }

    fn call(&self, call: &ToolCall) -> Value {
        let mut call = call.clone();
        if self.calls.text {
            call.arguments = Value::String(spaced(&call.arguments));
        }
        json!(call)
    }
}

/// A result names its tool, whether the client wrote the tool's name or the call's id.
fn name_results(messages: &mut [Message]) {
    let mut known: Vec<(String, String)> = Vec::new();
    for message in messages {
        for call in &message.tool_calls {
            known.push((call.id.clone(), call.name.clone()));
        }
        if message.role == "tool" && message.name.is_none() {
            let id = message.tool_call_id.as_deref().filter(|id| !id.is_empty());
            let found = known.iter().rev().find(|(known, _)| Some(known.as_str()) == id);
            message.name = found.map(|(_, name)| name.clone());
        }
    }
}

fn shorten_ids(messages: &mut [Message]) {
    for message in messages {
        for call in &mut message.tool_calls {
            call.id = crate::id::short(&call.id);
        }
        if let Some(id) = &mut message.tool_call_id {
            *id = crate::id::short(id);
        }
    }
}

/// Calls that the syntax can't carry stay; the template may do something with them.
fn calls_to_text(messages: &mut [Message], format: &Format) {
    for message in messages.iter_mut().filter(|message| !message.tool_calls.is_empty()) {
        if let Some(calls) = format.write_calls(&message.tool_calls) {
            message.tool_calls.clear();
            append(&mut message.content, &calls, "\n");
        }
    }
}

fn results_to_text(messages: &mut [Message]) {
    for message in messages.iter_mut().filter(|message| message.role == "tool") {
        "user".clone_into(&mut message.role);
        message.content = format!("<tool_response>\n{}\n</tool_response>", message.content);
        message.tool_call_id = None;
        message.name = None;
    }
}

/// Puts a description of the tools before everything else.
fn describe(messages: &mut Vec<Message>, tools: &[Tool]) {
    let mut text = String::from(
        "You can call functions. Each line between <tools> and </tools> is one, as JSON, with the \
         JSON schema of its parameters.\n<tools>\n",
    );
    for tool in tools {
        text.push_str(&spaced(&json!(tool)));
        text.push('\n');
    }
    text.push_str(
        "</tools>\nTo call a function, write its name and arguments as JSON between <tool_call> \
         and </tool_call>, and nothing behind it:\n<tool_call>\n{\"name\": \"the function's name\", \
         \"arguments\": {\"parameter\": \"value\"}}\n</tool_call>\nWrite one such block per call. \
         The results come back between <tool_response> and </tool_response>.",
    );
    match messages.first_mut() {
        Some(first) if first.role == "system" => {
            let own = std::mem::replace(&mut first.content, text);
            append(&mut first.content, &own, GAP);
        }
        _ => messages.insert(0, Message::new("system", text)),
    }
}

fn append(text: &mut String, more: &str, gap: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str(gap);
    }
    text.push_str(more);
}

/// All system messages become one, at the beginning.
fn gather_system(messages: &mut Vec<Message>) {
    let (system, mut others): (Vec<Message>, Vec<Message>) =
        messages.drain(..).partition(|message| message.role == "system");
    if !system.is_empty() {
        let texts: Vec<String> = system.into_iter().map(|message| message.content).collect();
        others.insert(0, Message::new("system", texts.join(GAP)));
    }
    *messages = others;
}

/// Puts system messages before the next message of the user, or makes them such.
fn system_to_user(messages: &mut Vec<Message>) {
    gather_system(messages);
    if messages.first().is_none_or(|first| first.role != "system") {
        return;
    }
    let system = messages.remove(0).content;
    match messages.first_mut() {
        Some(first) if first.role == "user" => {
            let own = std::mem::replace(&mut first.content, system);
            append(&mut first.content, &own, GAP);
        }
        _ => messages.insert(0, Message::new("user", system)),
    }
}

fn merge_neighbours(messages: &mut Vec<Message>) {
    let mut merged: Vec<Message> = Vec::new();
    for message in messages.drain(..) {
        match merged.last_mut() {
            Some(last) if last.role == message.role && message.role != "tool" => {
                append(&mut last.content, &message.content, GAP);
                last.tool_calls.extend(message.tool_calls);
                last.reasoning = message.reasoning.or(last.reasoning.take());
            }
            _ => merged.push(message),
        }
    }
    *messages = merged;
}

/// What a template is told about thinking.
pub(crate) fn thinking(think: Option<&Think>) -> Vec<(&'static str, Value)> {
    let Some(think) = think else {
        return Vec::new();
    };
    let on = *think != Think::Off;
    let mut names = vec![("enable_thinking", json!(on)), ("thinking", json!(on))];
    if let Think::Effort(effort) = think {
        names.push(("reasoning_effort", json!(effort)));
    }
    names
}
