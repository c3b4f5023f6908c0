//! The small conversations that show what a template can do.

use std::cell::Cell;

use chrono::{DateTime, FixedOffset};
use serde_json::{Value, json};

use crate::error::ChatError;
use crate::message::{Message, Think, Tool, ToolCall};
use crate::shape::{Calls, Concession, Shape, Thoughts, thinking};
use crate::template::{Capabilities, ChatTemplate};

/// What is put in and looked for. No template says such words of its own.
const WORD: &str = "qzxword";
const OTHER: &str = "qzxother";
const TOOL: &str = "qzxtool";

/// The shape that a template wants, and what it can do.
pub(crate) fn probe(template: &ChatTemplate, source: &str) -> (Shape, Capabilities) {
    let developer = source.contains("developer");
    let mut probe = Probe {
        template,
        shape: Shape { developer, ..Shape::default() },
        exhausts: Cell::new(false),
    };
    probe.contents();
    let system = probe.system();
    probe.alternation();
    let tools = probe.tools();
    probe.calls(tools);
    let shown = probe.reasoning();
    let (thinking, thinking_switch) = probe.switch();
    let capabilities = Capabilities { tools, thinking: thinking || shown, thinking_switch, system };
    (probe.shape, capabilities)
}

struct Probe<'a> {
    template: &'a ChatTemplate,
    shape: Shape,
    /// The template takes too much work. It is not tried again: that would take it many times.
    exhausts: Cell<bool>,
}

impl Probe<'_> {
    /// Renders with the shape so far; `None` if the template refuses.
    fn render(
        &self,
        messages: &[Message],
        tools: &[Tool],
        think: Option<&Think>,
    ) -> Option<String> {
        if self.exhausts.get() {
            return None;
        }
        let names: Vec<(String, Value)> =
            thinking(think).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let messages =
            self.shape.messages(messages, tools, self.template.format(), Concession::ShortIds);
        let now = DateTime::<FixedOffset>::default();
        let text =
            self.template.render_shaped(&messages, self.shape.tools(tools), &names, true, now);
        self.exhausts.set(text == Err(ChatError::Work));
        text.ok()
    }

    fn shows(&self, messages: &[Message], tools: &[Tool], words: &[&str]) -> bool {
        let text = self.render(messages, tools, None);
        text.is_some_and(|text| words.iter().all(|word| text.contains(word)))
    }

    fn contents(&mut self) {
        let messages = [Message::new("user", WORD)];
        for (parts, empty_tools) in [(false, false), (true, false), (false, true), (true, true)] {
            (self.shape.parts, self.shape.empty_tools) = (parts, empty_tools);
            if self.shows(&messages, &[], &[WORD]) {
                return;
            }
        }
        (self.shape.parts, self.shape.empty_tools) = (false, false);
    }

    fn system(&mut self) -> bool {
        let messages = [Message::new("system", WORD), Message::new("user", OTHER)];
        let system = self.shows(&messages, &[], &[WORD, OTHER]);
        self.shape.no_system = !system;
        system
    }

    fn alternation(&mut self) {
        let messages = [Message::new("user", WORD), Message::new("user", OTHER)];
        self.shape.alternating = self.render(&messages, &[], None).is_none();
    }

    fn tools(&mut self) -> bool {
        let tools = self.shows(&[Message::new("user", OTHER)], &[tool()], &[TOOL, OTHER]);
        self.shape.tools_as_text = !tools;
        tools
    }

    fn calls(&mut self, tools: bool) {
        if !tools {
            self.shape.calls_as_text = true;
            self.shape.results_as_text = true;
            return;
        }
        let shapes = [(false, false), (false, true), (true, false), (true, true)];
        let found = shapes.into_iter().map(|(text, null_content)| Calls { text, null_content });
        let mut found = found.filter(|calls| {
            self.shape.calls = *calls;
            // Some write a call only when its result is there.
            let answered = [called(None), vec![result()]].concat();
            let texts = [called(None), answered].map(|all| self.render(&all, &[tool()], None));
            let mut texts = texts.into_iter().flatten();
            let text = texts.find(|text| text.contains(WORD)).unwrap_or_default();
            // The tool is also named where it is described; the argument is not. A Python
            // dictionary that was written as such is not what a model was trained on, nor is a
            // text that was made JSON again.
            let argument = |quote: &str| text.contains(&format!("{quote}{WORD}{quote}"));
            text.contains(WORD) && !argument("'") && !argument("\\\"")
        });
        let found = found.next();
        self.shape.calls = found.unwrap_or_default();
        self.shape.calls_as_text = found.is_none();
        let mut messages = called(None);
        messages.push(result());
        self.shape.results_as_text = !self.shows(&messages, &[tool()], &[OTHER]);
    }

    /// Finds where reasoning is read from. Many templates leave out that of earlier turns; they
    /// keep it in the midst of calls.
    fn reasoning(&mut self) -> bool {
        let mut messages = called(Some(WORD));
        for call in messages.iter_mut().flat_map(|message| &mut message.tool_calls) {
            call.arguments = json!({});
        }
        messages.push(result());
        let plain = [
            Message::new("user", OTHER),
            Message { reasoning: Some(WORD.into()), ..Message::new("assistant", OTHER) },
        ];
        let places =
            [Thoughts::ReasoningContent, Thoughts::Reasoning, Thoughts::Thinking, Thoughts::Part];
        for place in places {
            self.shape.reasoning = place;
            let texts = [self.render(&messages, &[tool()], None), self.render(&plain, &[], None)];
            // A message that is written as it was given, keys and all, was not read.
            let keys = ["'thinking'", "\"thinking\"", "reasoning\"", "reasoning_content"];
            let reads =
                |text: &String| text.contains(WORD) && !keys.iter().any(|key| text.contains(key));
            if texts.iter().flatten().any(reads) {
                return true;
            }
        }
        self.shape.reasoning = Thoughts::default();
        false
    }

    /// Whether the template knows about thinking, and whether it can be turned off.
    fn switch(&self) -> (bool, bool) {
        let render = |think: Option<&Think>| self.render(&[Message::new("user", WORD)], &[], think);
        let off = render(Some(&Think::Off));
        let switch = off.is_some() && off != render(Some(&Think::On));
        let effort = render(None) != render(Some(&Think::Effort("high".to_owned())));
        (switch || effort, switch)
    }
}

fn tool() -> Tool {
    Tool {
        name: TOOL.to_owned(),
        description: "describes".to_owned(),
        parameters: json!({
            "type": "object",
            "properties": {"text": {"type": "string", "description": "a text"}},
            "required": ["text"],
        }),
        strict: false,
    }
}

fn called(reasoning: Option<&str>) -> Vec<Message> {
    let call = ToolCall {
        id: "qzxcall01".to_owned(),
        name: TOOL.to_owned(),
        arguments: json!({"text": WORD}),
    };
    let answer = Message {
        tool_calls: vec![call],
        reasoning: reasoning.map(str::to_owned),
        ..Message::new("assistant", "")
    };
    vec![Message::new("user", "calls"), answer]
}

fn result() -> Message {
    Message {
        tool_call_id: Some("qzxcall01".to_owned()),
        name: Some(TOOL.to_owned()),
        ..Message::new("tool", OTHER)
    }
}
