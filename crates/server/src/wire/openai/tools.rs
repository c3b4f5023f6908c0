//! Tools that a model may call, and whether it does.

use hypura_chat::Tool;
use serde::Deserialize;
use serde_json::Value;

use super::super::fields::{at_most, name, no_parameters};
use crate::answer::{Ask, Input, ToolChoice};
use crate::config::Limits;
use crate::error::ApiError;

/// What `tool_choice` may be.
const CHOICES: &str = "tool_choice must be none, auto, required, or name a function";

/// A tool of a chat, `{"type": "function", "function": {..}}`, or of a response, where the fields
/// are beside the type.
#[derive(Debug, Deserialize)]
pub(super) struct ToolField {
    #[serde(rename = "type", default = "function")]
    kind: String,
    function: Option<Function>,
    #[serde(flatten)]
    flat: Flat,
}

fn function() -> String {
    "function".to_owned()
}

/// A function as a chat describes it.
#[derive(Debug, Deserialize)]
pub(super) struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Flat {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// The tools of a request.
///
/// # Errors
/// When there are too many, one is no function, or one has no name.
pub(super) fn tools(fields: Vec<ToolField>, limits: &Limits) -> Result<Vec<Tool>, ApiError> {
    at_most("tools", fields.len(), limits.tools_max)?;
    fields.into_iter().map(tool).collect()
}

/// The tools of a request of before 2024, its `functions`.
///
/// # Errors
/// As [`tools`].
pub(super) fn functions(fields: Vec<Function>, limits: &Limits) -> Result<Vec<Tool>, ApiError> {
    at_most("functions", fields.len(), limits.tools_max)?;
    fields.into_iter().map(described).collect()
}

fn tool(field: ToolField) -> Result<Tool, ApiError> {
    if field.kind != "function" {
        let message = format!(
            "tools of type {:?} are not available; describe it as a function and run it yourself",
            field.kind
        );
        return Err(ApiError::bad_field("tools", message));
    }
    let Flat { name, description, parameters, strict } = field.flat;
    match (field.function, name) {
        (Some(function), _) => described(function),
        (None, Some(name)) => described(Function { name, description, parameters, strict }),
        (None, None) => Err(ApiError::bad_field("tools", "a tool has no name; add one")),
    }
}

fn described(function: Function) -> Result<Tool, ApiError> {
    name("tools.function.name", &function.name)?;
    Ok(Tool {
        name: function.name,
        description: function.description.unwrap_or_default(),
        parameters: function.parameters.unwrap_or_else(no_parameters),
        strict: function.strict.unwrap_or(false),
    })
}

/// `tool_choice`, and `function_call` of older clients.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Choice {
    /// `none`, `auto` or `required`.
    Word(String),
    /// One function, or some of them.
    Some(Chosen),
}

#[derive(Debug, Deserialize)]
struct Chosen {
    #[serde(rename = "type", default = "function")]
    kind: String,
    name: Option<String>,
    function: Option<NameField>,
    allowed_tools: Option<Allowed>,
    mode: Option<String>,
    tools: Option<Vec<AllowedTool>>,
}

#[derive(Debug, Deserialize)]
struct NameField {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Allowed {
    mode: String,
    tools: Vec<AllowedTool>,
}

#[derive(Debug, Deserialize)]
struct AllowedTool {
    name: Option<String>,
    function: Option<NameField>,
}

/// Puts into a question whether its tools are called, and leaves out those that aren't allowed.
///
/// # Errors
/// When a tool is chosen that is not there.
pub(super) fn choose(ask: &mut Ask, choice: Option<Value>) -> Result<(), ApiError> {
    let (Input::Chat(conversation), Some(choice)) = (&mut ask.input, choice) else {
        return Ok(());
    };
    let tools = &mut conversation.tools;
    ask.tool_choice = match serde_json::from_value(choice) {
        Ok(Choice::Word(word)) => mode(&word, tools)?,
        Ok(Choice::Some(chosen)) => chosen.apply(tools)?,
        Err(_) => return Err(refused(CHOICES)),
    };
    Ok(())
}

impl Chosen {
    fn apply(self, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
        match self.kind.as_str() {
            "function" => {
                let chosen = self.function.map(|function| function.name).or(self.name);
                let Some(chosen) = chosen else { return Err(refused("tool_choice has no name")) };
                known(&chosen, tools)?;
                Ok(ToolChoice::Function(chosen))
            }
            "allowed_tools" => {
                let allowed = match (self.allowed_tools, self.mode, self.tools) {
                    (Some(allowed), _, _) => allowed,
                    (None, Some(mode), Some(tools)) => Allowed { mode, tools },
                    _ => return Err(refused("allowed_tools needs a mode and tools")),
                };
                let mut names = Vec::with_capacity(allowed.tools.len());
                for tool in allowed.tools {
                    let name = tool.function.map(|function| function.name).or(tool.name);
                    let name =
                        name.ok_or_else(|| refused("a tool of allowed_tools has no name"))?;
                    known(&name, tools)?;
                    names.push(name);
                }
                tools.retain(|tool| names.contains(&tool.name));
                mode(&allowed.mode, tools)
            }
            _ => Err(refused("tool_choice.type must be function or allowed_tools")),
        }
    }
}

fn mode(word: &str, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    match word {
        "none" => Ok(ToolChoice::Never),
        "auto" => Ok(ToolChoice::Auto),
        "required" | "any" if tools.is_empty() => {
            Err(refused("tool_choice asks for a tool, and tools is empty; add one"))
        }
        "required" | "any" => Ok(ToolChoice::Required),
        _ => Err(refused(CHOICES)),
    }
}

fn known(name: &str, tools: &[Tool]) -> Result<(), ApiError> {
    match tools.iter().any(|tool| tool.name == name) {
        true => Ok(()),
        false => Err(refused(format!("tool_choice names {name:?}, which is not among the tools"))),
    }
}

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::bad_field("tool_choice", message)
}

#[cfg(test)]
mod tests {
    use hypura_chat::Conversation;
    use serde_json::json;

    use super::*;

    fn read(json: Value) -> Result<Vec<Tool>, ApiError> {
        tools(serde_json::from_value(json).unwrap(), &Limits::default())
    }

    #[test]
    fn both_forms_of_a_tool() {
        let parameters = json!({"type": "object", "properties": {"x": {"type": "integer"}}});
        let expected = Tool {
            name: "f".into(),
            description: "d".into(),
            parameters: parameters.clone(),
            strict: true,
        };
        let fields =
            json!({"name": "f", "description": "d", "parameters": parameters, "strict": true});
        let mut flat = fields.clone();
        flat["type"] = json!("function");
        for tool in [json!({"type": "function", "function": fields}), flat] {
            assert_eq!(read(json!([tool])).unwrap(), std::slice::from_ref(&expected));
        }
    }

    #[test]
    fn parameters_may_be_missing() {
        let tools = read(json!([{"type": "function", "function": {"name": "f"}}])).unwrap();
        assert_eq!(tools[0].parameters, no_parameters());
    }

    #[test]
    fn other_tools_are_refused() {
        let error = read(json!([{"type": "web_search"}])).unwrap_err();
        assert!(error.message.contains("web_search"), "{error}");
        assert!(read(json!([{"type": "function"}])).is_err());
        assert!(read(json!([{"type": "function", "function": {"name": ""}}])).is_err());
        let many: Vec<Value> =
            (0..257).map(|i| json!({"type": "function", "name": format!("f{i}")})).collect();
        assert!(read(json!(many)).is_err());
    }

    fn chosen(choice: Value) -> Result<(ToolChoice, usize), ApiError> {
        let tools =
            read(json!([{"type": "function", "name": "f"}, {"type": "function", "name": "g"}]));
        let conversation = Conversation { tools: tools.unwrap(), ..Conversation::default() };
        let mut ask = Ask::new("m", Input::Chat(conversation), "");
        choose(&mut ask, serde_json::from_value(choice).unwrap())?;
        let Input::Chat(conversation) = ask.input else { unreachable!() };
        Ok((ask.tool_choice, conversation.tools.len()))
    }

    #[test]
    fn choices() {
        let check = |choice: Value, expected: ToolChoice, tools: usize| {
            assert_eq!(chosen(choice).unwrap(), (expected, tools));
        };
        check(json!(null), ToolChoice::Auto, 2);
        check(json!("auto"), ToolChoice::Auto, 2);
        check(json!("none"), ToolChoice::Never, 2);
        check(json!("required"), ToolChoice::Required, 2);
        let f = || ToolChoice::Function("f".into());
        check(json!({"type": "function", "function": {"name": "f"}}), f(), 2);
        check(json!({"type": "function", "name": "f"}), f(), 2);
        check(json!({"name": "f"}), f(), 2);
        let g = json!([{"type": "function", "name": "g"}]);
        let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": g});
        check(allowed, ToolChoice::Required, 1);
        let g = json!([{"type": "function", "function": {"name": "g"}}]);
        let allowed =
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": g}});
        check(allowed, ToolChoice::Auto, 1);
    }

    #[test]
    fn choices_of_what_is_not_there() {
        for choice in [
            json!("perhaps"),
            json!(7),
            json!({"type": "function", "function": {"name": "h"}}),
            json!({"type": "function"}),
            json!({"type": "web_search"}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "h"}]}),
            json!({"type": "allowed_tools"}),
        ] {
            let error = chosen(choice).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("tool_choice"));
        }
    }
}
