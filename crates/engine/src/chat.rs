//! Chat templates: from messages to the prompt that the model was trained on.
//!
//! A model carries its template (Jinja2, `tokenizer.chat_template`). It is rendered by minijinja
//! with the names and the filters that Hugging Face's `apply_chat_template` offers:
//! `raise_exception`, `strftime_now`, `tojson` as Python writes it, methods of Python's strings
//! and lists, trimmed blocks.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.to_owned(), content: content.into() }
    }
}

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
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            chrono::Local::now().format(&format).to_string()
        });
        environment.add_template_owned(NAME, source.to_owned())?;
        Ok(ChatTemplate { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// ChatML, for models that bring no template.
    ///
    /// # Errors
    /// Never: the template is ours.
    pub fn chatml() -> Result<ChatTemplate, ChatError> {
        ChatTemplate::new(CHATML, "", "")
    }

    /// Renders a conversation, with the beginning of an answer at its end.
    ///
    /// # Errors
    /// When the template refuses the messages (some allow no system message, or want turns to
    /// alternate).
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatError> {
        let template = self.environment.get_template(NAME)?;
        let text = template.render(minijinja::context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
        })?;
        Ok(text)
    }
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
