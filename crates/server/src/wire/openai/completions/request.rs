//! From the request for completions to the questions.

use axum::body::Bytes;
use hypura_engine::llama::Token;
use serde::Deserialize;
use serde_json::Value;

use super::super::super::fields::{TextOr, token_count};
use super::super::super::keep_alive::keep_alive;
use super::super::sampling::{SamplingFields, choices};
use super::Form;
use crate::answer::{Ask, Input};
use crate::config::Limits;
use crate::error::ApiError;
use crate::http;

/// Most alternatives of a token, as in OpenAI's reference.
const TOP_MAX: usize = 5;

/// A request, understood.
#[derive(Debug)]
pub(super) struct Request {
    /// `n` questions for each prompt, one prompt after the other.
    pub(super) asks: Vec<Ask>,
    pub(super) model: String,
    /// Whether answers are sent while they are made.
    pub(super) stream: bool,
    pub(super) form: Form,
}

/// The fields beside those of [`SamplingFields`].
#[derive(Debug, Deserialize)]
struct Fields {
    model: String,
    prompt: Option<TextOr<Element>>,
    suffix: Option<String>,
    echo: Option<bool>,
    n: Option<usize>,
    best_of: Option<usize>,
    max_tokens: Option<i64>,
    logprobs: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    keep_alive: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// An element of a list of prompts, or a token of the only one.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text, a token, or a list of tokens")]
enum Element {
    Text(String),
    Token(Token),
    Tokens(Vec<Token>),
}

impl Request {
    /// Understands a request, within `limits`.
    ///
    /// Without `max_tokens` an answer goes on until the model ends it, as with Ollama and llama.cpp's
    /// server; OpenAI's default of 16 is of no use to anybody.
    pub(super) fn parse(body: &Bytes, limits: &Limits, tenant: &str) -> Result<Request, ApiError> {
        let sampling: SamplingFields = http::parse(body)?;
        let fields: Fields = http::parse(body)?;
        fields.check()?;
        let prompts = prompts(fields.prompt)?;
        let n = fields.n.unwrap_or(1);
        let asked = n.checked_mul(prompts.len()).filter(|asked| *asked <= limits.choices_max);
        if n == 0 || asked.is_none() {
            let message =
                format!("n times the number of prompts must be from 1 to {}", limits.choices_max);
            return Err(ApiError::bad_field("n", message));
        }
        let echo = if fields.echo.unwrap_or(false) { texts(&prompts)? } else { Vec::new() };

        let mut ask = Ask::new(fields.model.clone(), Input::Text(String::new()), tenant);
        sampling.apply(&mut ask, limits)?;
        ask.max_tokens = token_count("max_tokens", fields.max_tokens)?;
        ask.logprobs = fields.logprobs;
        ask.keep_alive = keep_alive(fields.keep_alive.as_ref())?;
        let asks = prompts.into_iter().flat_map(|input| choices(Ask { input, ..ask.clone() }, n));
        let usage = fields.stream_options.and_then(|options| options.include_usage);
        Ok(Request {
            asks: asks.collect(),
            model: fields.model,
            stream: fields.stream.unwrap_or(false),
            form: Form {
                n,
                echo,
                logprobs: fields.logprobs.is_some(),
                usage: usage.unwrap_or(false),
            },
        })
    }
}

impl Fields {
    fn check(&self) -> Result<(), ApiError> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            let message = "text can't be filled in before a suffix; leave suffix out";
            return Err(ApiError::bad_field("suffix", message));
        }
        if self.best_of.is_some_and(|best_of| best_of > self.n.unwrap_or(1)) {
            let message = "best_of must not be more than n; ask for n answers and choose";
            return Err(ApiError::bad_field("best_of", message));
        }
        if self.logprobs.is_some_and(|top| top > TOP_MAX) {
            let message = format!("logprobs must be from 0 to {TOP_MAX}");
            return Err(ApiError::bad_field("logprobs", message));
        }
        if self.echo == Some(true) && self.logprobs.is_some() {
            let message =
                "log probabilities of a prompt are not available; leave out echo or logprobs";
            return Err(ApiError::bad_field("echo", message));
        }
        Ok(())
    }
}

fn prompts(prompt: Option<TextOr<Element>>) -> Result<Vec<Input>, ApiError> {
    let elements = match prompt {
        None => return Err(ApiError::bad_field("prompt", "prompt is missing; add a text")),
        Some(TextOr::Text(text)) => return Ok(vec![Input::Text(text)]),
        Some(TextOr::List(elements)) => elements,
    };
    if elements.is_empty() {
        return Err(ApiError::bad_field("prompt", "prompt is empty; add a text"));
    }
    let mixed = || {
        ApiError::bad_field("prompt", "prompt must be one text, texts, tokens, or lists of tokens")
    };
    if let Some(Element::Token(_)) = elements.first() {
        let tokens = elements.into_iter().map(|element| match element {
            Element::Token(token) => Some(token),
            Element::Text(_) | Element::Tokens(_) => None,
        });
        let tokens: Option<Vec<Token>> = tokens.collect();
        return Ok(vec![Input::Tokens(sound(tokens.ok_or_else(mixed)?)?)]);
    }
    let inputs = elements.into_iter().map(|element| match element {
        Element::Text(text) => Ok(Input::Text(text)),
        Element::Tokens(tokens) => Ok(Input::Tokens(sound(tokens)?)),
        Element::Token(_) => Err(mixed()),
    });
    inputs.collect()
}

fn sound(tokens: Vec<Token>) -> Result<Vec<Token>, ApiError> {
    if tokens.is_empty() || tokens.iter().any(|&token| token < 0) {
        return Err(ApiError::bad_field("prompt", "a list of tokens needs token ids from 0 on"));
    }
    Ok(tokens)
}

fn texts(prompts: &[Input]) -> Result<Vec<String>, ApiError> {
    let texts = prompts.iter().map(|prompt| match prompt {
        Input::Text(text) => Some(text.clone()),
        _ => None,
    });
    let texts: Option<Vec<String>> = texts.collect();
    texts.ok_or_else(|| ApiError::bad_field("echo", "only a text can be repeated; leave out echo"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(fields: Value) -> Result<Request, ApiError> {
        let mut json = json!({"model": "m", "prompt": "Once"});
        for (field, value) in fields.as_object().unwrap() {
            json[field] = value.clone();
        }
        Request::parse(&Bytes::from(json.to_string()), &Limits::default(), "ann")
    }

    fn inputs(prompt: Value) -> Vec<String> {
        let request = with(json!({"prompt": prompt})).unwrap();
        request.asks.iter().map(|ask| format!("{:?}", ask.input)).collect()
    }

    #[test]
    fn four_forms_of_a_prompt() {
        assert_eq!(inputs(json!("a")), [r#"Text("a")"#]);
        assert_eq!(inputs(json!(["a", "b"])), [r#"Text("a")"#, r#"Text("b")"#]);
        assert_eq!(inputs(json!([1, 2])), ["Tokens([1, 2])"]);
        assert_eq!(inputs(json!([[1], [2, 3]])), ["Tokens([1])", "Tokens([2, 3])"]);
    }

    #[test]
    fn fields() {
        let request = with(json!({
            "prompt": ["a", "b"], "n": 2, "best_of": 2, "seed": 4, "max_tokens": 3, "logprobs": 0,
            "stream": true, "stream_options": {"include_usage": true}, "suffix": "", "user": "x"
        }))
        .unwrap();
        let seeds: Vec<Option<i64>> = request.asks.iter().map(|ask| ask.sampling.seed).collect();
        assert_eq!(seeds, [Some(4), Some(5), Some(4), Some(5)]);
        assert_eq!((request.asks[0].max_tokens, request.asks[0].logprobs), (Some(3), Some(0)));
        assert!(request.stream);
        let form = Form { n: 2, echo: Vec::new(), logprobs: true, usage: true };
        assert_eq!(request.form, form);
    }

    #[test]
    fn prompts_are_repeated() {
        let form = with(json!({"prompt": ["a", "b"], "n": 2, "echo": true})).unwrap().form;
        let echoes: Vec<&str> = (0..4).map(|choice| form.echo(choice)).collect();
        assert_eq!(echoes, ["a", "a", "b", "b"]);
        assert_eq!(with(json!({})).unwrap().form.echo(0), "");
    }

    #[test]
    fn what_is_refused() {
        for (fields, named) in [
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [1, "a"]}), "prompt"),
            (json!({"prompt": ["a", 1]}), "prompt"),
            (json!({"prompt": [[]]}), "prompt"),
            (json!({"prompt": [-1]}), "prompt"),
            (json!({"n": 0}), "n"),
            (json!({"n": 17}), "n"),
            (json!({"n": 9, "prompt": ["a", "b"]}), "n"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"logprobs": 6}), "logprobs"),
            (json!({"logprobs": 1, "echo": true}), "echo"),
            (json!({"prompt": [1], "echo": true}), "echo"),
            (json!({"max_tokens": 0}), "max_tokens"),
        ] {
            let error = with(fields).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(named), "{error}");
        }
    }
}
