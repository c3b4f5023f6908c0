//! Tools that a model may call, and whether it does.

use hypura_chat::Tool;
use serde::Deserialize;
use serde_json::Value;

use super::super::fields::{at_most, name, no_parameters};
use crate::answer::{Ask, ToolChoice};
use crate::config::Limits;
use crate::error::ApiError;

/// A tool on the wire.
#[derive(Debug, Deserialize)]
pub(super) struct ToolField {
    /// `custom`, or one that Anthropic runs or defines.
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

/// The tools of a request.
///
/// # Errors
/// When there are too many, or one is not described here.
pub(super) fn tools(fields: Vec<ToolField>, limits: &Limits) -> Result<Vec<Tool>, ApiError> {
    at_most("tools", fields.len(), limits.tools_max)?;
    fields.into_iter().map(tool).collect()
}

fn tool(field: ToolField) -> Result<Tool, ApiError> {
    if let Some(kind) = field.kind.filter(|kind| kind != "custom") {
        let message = format!(
            "tools of type {kind:?} are not available; describe it by an input_schema and run it yourself"
        );
        return Err(ApiError::bad_field("tools", message));
    }
    name("tools.name", &field.name)?;
    Ok(Tool {
        name: field.name,
        description: field.description.unwrap_or_default(),
        parameters: field.input_schema.unwrap_or_else(no_parameters),
        strict: field.strict.unwrap_or(false),
    })
}

/// Whether tools are called, on the wire.
#[derive(Debug, Deserialize)]
pub(super) struct ChoiceField {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// Puts into a question whether `tools` are called.
///
/// # Errors
/// When a tool is chosen that is not there.
pub(super) fn choose(ask: &mut Ask, choice: ChoiceField, tools: &[Tool]) -> Result<(), ApiError> {
    let refused = |message: &str| ApiError::bad_field("tool_choice", message);
    ask.tool_choice = match choice.kind.as_str() {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::Never,
        "any" if tools.is_empty() => {
            return Err(refused("tool_choice asks for a tool, and tools is empty; add one"));
        }
        "any" => ToolChoice::Required,
        "tool" => {
            let name = choice.name.unwrap_or_default();
            if !tools.iter().any(|tool| tool.name == name) {
                let message = format!("tool_choice names {name:?}, which is not among the tools");
                return Err(refused(&message));
            }
            ToolChoice::Function(name)
        }
        _ => return Err(refused("tool_choice.type must be auto, any, tool or none")),
    };
    ask.parallel_tool_calls = !choice.disable_parallel_tool_use.unwrap_or(false);
    Ok(())
}
