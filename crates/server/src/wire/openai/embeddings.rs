//! `POST /v1/embeddings`.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hypura_engine::llama::Token;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::fields::{TextOr, at_most};
use super::super::keep_alive::keep_alive;
use super::error::OpenAiError;
use crate::answer::{EmbedAsk, EmbedInput, Embedded, embed};
use crate::app::Shared;
use crate::config::Limits;
use crate::error::ApiError;
use crate::http::{self, Caller};

/// Computes the embedding of each input.
pub(super) async fn embeddings(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, OpenAiError> {
    let (ask, encoding) = parse(&body, &app.config.limits, &caller.tenant)?;
    let model = ask.model.clone();
    let embedded = embed(&app, ask).await?;
    Ok(Json(List::new(model, embedded, encoding)).into_response())
}

#[derive(Debug, Deserialize)]
struct Fields {
    model: String,
    input: Option<TextOr<Element>>,
    encoding_format: Option<Encoding>,
    dimensions: Option<usize>,
    keep_alive: Option<Value>,
}

/// An element of a list of inputs, or a token of the only one.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text, a token, or a list of tokens")]
enum Element {
    Text(String),
    Token(Token),
    Tokens(Vec<Token>),
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    /// As a list.
    #[default]
    Float,
    /// As little-endian 32-bit floats in Base64; what `openai-python` asks for by itself.
    Base64,
}

fn parse(body: &Bytes, limits: &Limits, tenant: &str) -> Result<(EmbedAsk, Encoding), ApiError> {
    let fields: Fields = http::parse(body)?;
    if fields.dimensions == Some(0) {
        return Err(ApiError::bad_field("dimensions", "dimensions must be at least 1"));
    }
    let ask = EmbedAsk {
        model: fields.model,
        inputs: inputs(fields.input, limits)?,
        truncate: false,
        dimensions: fields.dimensions,
        keep_alive: keep_alive(fields.keep_alive.as_ref())?,
        num_ctx: None,
        tenant: tenant.to_owned(),
    };
    Ok((ask, fields.encoding_format.unwrap_or_default()))
}

fn inputs(input: Option<TextOr<Element>>, limits: &Limits) -> Result<Vec<EmbedInput>, ApiError> {
    let refused = |message: &str| Err(ApiError::bad_field("input", message));
    let elements = match input {
        None => return refused("input is missing; add a text"),
        Some(TextOr::Text(text)) => vec![Element::Text(text)],
        Some(TextOr::List(elements)) => elements,
    };
    let mut inputs = Vec::new();
    let mut tokens = Vec::new();
    for element in elements {
        match element {
            Element::Text(text) => inputs.push(EmbedInput::Text(text)),
            Element::Tokens(tokens) => inputs.push(EmbedInput::Tokens(tokens)),
            Element::Token(token) => tokens.push(token),
        }
    }
    match (inputs.is_empty(), tokens.is_empty()) {
        (true, true) => return refused("input is empty; add a text"),
        (false, false) => {
            return refused("input must be one text, texts, tokens, or lists of tokens");
        }
        (true, false) => inputs.push(EmbedInput::Tokens(tokens)),
        (false, true) => at_most("input", inputs.len(), limits.inputs_max)?,
    }
    let empty = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => text.is_empty(),
        EmbedInput::Tokens(tokens) => tokens.is_empty() || tokens.iter().any(|&token| token < 0),
    };
    if inputs.iter().any(empty) {
        return refused("an input is empty, or has a token below 0; leave it out");
    }
    Ok(inputs)
}

/// The list of embeddings. Its numbers are written as 32-bit floats, which `serde_json::Value` does
/// not have.
#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Tokens,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers {
    List(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Tokens {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl List {
    fn new(model: String, embedded: Embedded, encoding: Encoding) -> List {
        let tokens = embedded.prompt_tokens;
        let vectors = embedded.vectors.into_iter().enumerate();
        let data = vectors.map(|(index, vector)| Embedding {
            object: "embedding",
            index,
            embedding: match encoding {
                Encoding::Float => Numbers::List(vector),
                Encoding::Base64 => Numbers::Base64(base64(&vector)),
            },
        });
        List {
            object: "list",
            data: data.collect(),
            model,
            usage: Tokens { prompt_tokens: tokens, total_tokens: tokens },
        }
    }
}

fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// Understands any bytes as a request, for fuzz tests.
pub(super) fn fuzz(body: &Bytes, limits: &Limits) {
    if let Ok((ask, _)) = parse(body, limits, "") {
        assert!((1..=limits.inputs_max).contains(&ask.inputs.len()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn with(field: &str, value: Value) -> Result<(EmbedAsk, Encoding), ApiError> {
        let mut json = json!({"model": "m", "input": "Hi"});
        json[field] = value;
        let limits = Limits { inputs_max: 2, ..Limits::default() };
        parse(&Bytes::from(json.to_string()), &limits, "ann")
    }

    #[test]
    fn four_forms_of_an_input() {
        let check = |input: Value, expected: &str| {
            assert_eq!(format!("{:?}", with("input", input).unwrap().0.inputs), expected);
        };
        check(json!("a"), r#"[Text("a")]"#);
        check(json!(["a", "b"]), r#"[Text("a"), Text("b")]"#);
        check(json!([1, 2, 3]), "[Tokens([1, 2, 3])]");
        check(json!([[1], [2]]), "[Tokens([1]), Tokens([2])]");
    }

    #[test]
    fn what_is_refused() {
        for input in [
            json!(null),
            json!(""),
            json!([]),
            json!([[]]),
            json!(["a", ""]),
            json!(["a", 1]),
            json!([-1]),
            json!(["a", "b", "c"]),
        ] {
            assert_eq!(with("input", input).unwrap_err().field.as_deref(), Some("input"));
        }
        assert!(with("dimensions", json!(0)).is_err());
        assert!(with("encoding_format", json!("hex")).is_err());
    }

    #[test]
    fn numbers_in_both_encodings() {
        let (ask, encoding) = with("encoding_format", json!("base64")).unwrap();
        assert_eq!((ask.truncate, ask.tenant.as_str()), (false, "ann"));
        assert_eq!(encoding, Encoding::Base64);
        let written = |encoding| {
            let embedded = Embedded {
                vectors: vec![vec![0.1, -2.0]],
                prompt_tokens: 3,
                load_time: Duration::ZERO,
                total_time: Duration::ZERO,
            };
            serde_json::to_string(&List::new("m".into(), embedded, encoding)).unwrap()
        };
        let expected = |numbers: &str| {
            format!(
                r#"{{"object":"list","data":[{{"object":"embedding","index":0,"embedding":{numbers}}}],"model":"m","usage":{{"prompt_tokens":3,"total_tokens":3}}}}"#
            )
        };
        assert_eq!(written(Encoding::Float), expected("[0.1,-2.0]"));
        assert_eq!(written(Encoding::Base64), expected(r#""zczMPQAAAMA=""#));
    }
}
