//! Chat templates: from messages to the prompt that the model was trained on.
//!
//! A model carries its template (Jinja2, `tokenizer.chat_template`). It is rendered by minijinja
//! with the names and the filters that Hugging Face's `apply_chat_template` offers:
//! `raise_exception`, `strftime_now`, `tojson` as Python writes it, methods of Python's strings
//! and lists, trimmed blocks.

use chrono::{DateTime, FixedOffset, Local};
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::format::Format;
use crate::message::{Conversation, Message, Think};

/// A template could not be used.
#[derive(Debug, thiserror::Error)]
#[error("the model's chat template fails: {0}; use --raw to pass the prompt as it is")]
pub struct ChatError(String);

impl From<Error> for ChatError {
    fn from(error: Error) -> ChatError {
        ChatError(error.to_string())
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    format: Format,
}

const NAME: &str = "chat";

/// What most models without a template of their own understand.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are the texts of the model's special tokens.
    ///
    /// # Errors
    /// When the template is not valid.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, ChatError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_keep_trailing_newline(true);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            chrono::Local::now().format(&format).to_string()
        });
        environment.add_template_owned(NAME, source.to_owned())?;
        Ok(ChatTemplate {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            format: Format::detect(source),
        })
    }

    /// ChatML, for models that bring no template.
    ///
    /// # Errors
    /// Never: the template is ours.
    pub fn chatml() -> Result<ChatTemplate, ChatError> {
        ChatTemplate::new(CHATML, "", "")
    }

    /// Renders messages, with the beginning of an answer at the end. The clock is the system's.
    ///
    /// # Errors
    /// When the template refuses the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatError> {
        let conversation = Conversation { messages: messages.to_vec(), ..Conversation::default() };
        self.render_conversation(&conversation, true, Local::now().fixed_offset())
    }

    /// Renders a conversation; `now` is what the template sees as the time.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
        _now: DateTime<FixedOffset>,
    ) -> Result<String, ChatError> {
        let template = self.environment.get_template(NAME)?;
        let thinks = conversation.think.as_ref().map(|think| *think != Think::Off);
        let text = template.render(minijinja::context! {
            messages => conversation.messages,
            enable_thinking => thinks,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
        })?;
        Ok(text)
    }

    /// What the template can do.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities { tools: false, thinking: false, thinking_switch: false, system: true }
    }

    /// How the model writes reasoning and tool calls.
    pub fn format(&self) -> &Format {
        &self.format
    }
}

/// What a template can do, found out by rendering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It describes tools to the model. Without it we do, in the system message.
    pub tools: bool,
    /// The model can think.
    pub thinking: bool,
    /// Thinking can be turned off.
    pub thinking_switch: bool,
    /// It takes a system message. Without it, that becomes part of the first message.
    pub system: bool,
}

/// `json.dumps(value, ensure_ascii=False)`, with Python's separators.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    write_json(&json, indent, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value as Json;
    let line = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        Json::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(separator);
                }
                line(depth + 1, out);
                write_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Json::Object(items) if !items.is_empty() => {
            out.push('{');
            for (i, (key, item)) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(separator);
                }
                line(depth + 1, out);
                out.push_str(&Json::String(key.clone()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}
