//! Chat templates: from messages to the prompt that the model was trained on.

use chrono::{DateTime, FixedOffset, Local};
use serde_json::{Map, Value};

use crate::error::ChatError;
use crate::format::Format;
use crate::jinja::Jinja;
use crate::message::{Conversation, Message};
use crate::probe;
use crate::shape::{Concession, Shape, thinking};

/// What most models without a template of their own understand.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A model's chat template, ready to be rendered.
///
/// When it is made, a few small conversations are rendered to learn what it can do and in which
/// shape it wants its messages. What it lacks is made up for: without tools of its own, they are
/// described in the system message; without a system message, that begins the user's; and so on.
pub struct ChatTemplate {
    jinja: Jinja,
    bos: String,
    eos: String,
    shape: Shape,
    capabilities: Capabilities,
    format: Format,
}

/// What a template can do, found out by rendering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It describes tools to the model. If not, we do, in the system message.
    pub tools: bool,
    /// The model can think.
    pub thinking: bool,
    /// Thinking can be turned off.
    pub thinking_switch: bool,
    /// It takes a system message. If not, that becomes part of the user's first.
    pub system: bool,
}

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are the texts of the model's special tokens.
    ///
    /// # Errors
    /// When the template is not valid.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, ChatError> {
        let jinja = Jinja::new(source).map_err(|error| ChatError::template(&error))?;
        let mut template = ChatTemplate {
            jinja,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            shape: Shape::default(),
            capabilities: Capabilities {
                tools: true,
                thinking: false,
                thinking_switch: false,
                system: true,
            },
            format: Format::detect(source).with_stop(eos),
        };
        let (shape, mut capabilities) = probe::probe(&template, source);
        capabilities.thinking |= template.format.reasoning_end().is_some();
        if !capabilities.tools {
            template.format = template.format.with_described_tools();
        }
        template.shape = shape;
        template.capabilities = capabilities;
        Ok(template)
    }

    /// ChatML, for models that bring no template.
    ///
    /// # Errors
    /// Never: the template is ours.
    pub fn chatml() -> Result<ChatTemplate, ChatError> {
        ChatTemplate::new(CHATML, "", "<|im_end|>")
    }

    /// Renders messages, with the beginning of an answer at the end. Templates that name the day
    /// see the system's.
    ///
    /// # Errors
    /// When the template refuses the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatError> {
        let conversation = Conversation { messages: messages.to_vec(), ..Conversation::default() };
        self.render_conversation(&conversation, true, Local::now().fixed_offset())
    }

    /// Renders a conversation, with the beginning of an answer at the end if
    /// `add_generation_prompt`. `now` is what the template sees as the time.
    ///
    /// A template that refuses is tried again with shorter ids of calls, then without the reasoning
    /// of earlier answers, then with neighbours of one role made one message.
    ///
    /// # Errors
    /// When the template refuses the conversation all the same; the error is that of the first
    /// attempt.
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        now: DateTime<FixedOffset>,
    ) -> Result<String, ChatError> {
        let mut names: Vec<(String, Value)> = thinking(conversation.think.as_ref())
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        names.extend(conversation.template_args.clone());
        let mut first_error = None;
        let mut tried = None;
        for concession in Concession::ALL {
            let Conversation { messages, tools, .. } = conversation;
            let messages = self.shape.messages(messages, tools, &self.format, concession);
            if tried.as_ref() == Some(&messages) {
                continue;
            }
            let tools = if self.shape.tools_as_text { &[] } else { conversation.tools.as_slice() };
            let tools = self.shape.tools(tools);
            match self.render_shaped(&messages, tools, &names, add_generation_prompt, now) {
                Ok(text) => return Ok(text),
                Err(ChatError::Work) => return Err(ChatError::Work),
                Err(error) => first_error = first_error.or(Some(error)),
            }
            tried = Some(messages);
        }
        Err(first_error.unwrap_or_else(|| ChatError::Render("no attempt was made".to_owned())))
    }

    /// Renders with these names, of which none is added or changed, and the texts of the special
    /// tokens. For comparing templates and engines; conversations go through
    /// [`ChatTemplate::render_conversation`].
    ///
    /// # Errors
    /// When the template fails.
    pub fn render_names(
        &self,
        names: &Map<String, Value>,
        now: DateTime<FixedOffset>,
    ) -> Result<String, ChatError> {
        let own = [("bos_token", &self.bos), ("eos_token", &self.eos)];
        let own = own.map(|(name, text)| (name.to_owned(), Value::String(text.clone())));
        let names = names.iter().map(|(name, value)| (name.clone(), value.clone()));
        self.run(own.into_iter().chain(names).collect(), now)
    }

    /// Renders messages that have their shape already.
    pub(crate) fn render_shaped(
        &self,
        messages: &Value,
        tools: Value,
        names: &[(String, Value)],
        add_generation_prompt: bool,
        now: DateTime<FixedOffset>,
    ) -> Result<String, ChatError> {
        let mut all = vec![
            ("messages".to_owned(), messages.clone()),
            ("tools".to_owned(), tools),
            ("documents".to_owned(), Value::Null),
            ("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt)),
            ("bos_token".to_owned(), Value::String(self.bos.clone())),
            ("eos_token".to_owned(), Value::String(self.eos.clone())),
        ];
        for (name, value) in names {
            all.retain(|(known, _)| known != name);
            all.push((name.clone(), value.clone()));
        }
        self.run(all, now)
    }

    fn run(
        &self,
        names: Vec<(String, Value)>,
        now: DateTime<FixedOffset>,
    ) -> Result<String, ChatError> {
        let bytes = names.iter().map(|(_, value)| size(value)).sum();
        let names = names.into_iter();
        let names = names.map(|(name, value)| (name, minijinja::Value::from_serialize(value)));
        self.jinja.render(names, bytes, now).map_err(|error| ChatError::render(&error))
    }

    /// What the template can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// How the model writes reasoning and tool calls.
    pub fn format(&self) -> &Format {
        &self.format
    }
}

/// About how many bytes a value holds.
fn size(value: &Value) -> usize {
    /// What a value takes besides its text.
    const VALUE_BYTES: usize = 32;
    VALUE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(items) => items.iter().map(|(key, item)| key.len() + size(item)).sum(),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(template: &str, expected: &str) {
        let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
        let messages = [Message::new("user", "Hi <you>"), Message::new("assistant", " Ho ")];
        assert_eq!(template.render(&messages).unwrap(), expected);
    }

    #[test]
    fn templates_render_as_python_does() {
        check(
            "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m.content.strip() }};{% endfor %}",
            "<s>user:Hi <you>;assistant:Ho;",
        );
        check("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "Hi <you>"}"#);
        check("{%- if true %}\n  x\n{%- endif %}\n", "  x");
        check("{{ messages[0].content.split(' ')[-1] }}", "<you>");
        check(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        );
    }

    #[test]
    fn chatml_is_chatml() {
        let text = ChatTemplate::chatml().unwrap().render(&[Message::new("user", "Hi")]).unwrap();
        assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn a_refusal_is_an_error() {
        let template = ChatTemplate::new("{{ raise_exception('no system message') }}", "", "");
        let error = template.unwrap().render(&[]).unwrap_err();
        assert!(error.to_string().contains("no system message"), "{error}");
    }
}
