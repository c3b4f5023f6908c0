//! Writing a schema anew: what can be enforced, with the targets of references by number.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::error::ConstraintError;
use crate::limits::{
    CHOSEN_PROPERTIES_MAX, PATTERN_BYTES_MAX, PATTERN_PROPERTIES_MAX, PROPERTIES_MAX,
    PROPERTY_NAME_BYTES_MAX, REFERENCE_REACH_MAX, SCHEMA_DEPTH_MAX, SCHEMA_NODES_MAX,
    SCHEMA_TEXT_BYTES_MAX,
};
use crate::schema::multiple::CommonMultiple;
use crate::schema::{over, reference};

/// Keywords that say what a text must be, and can't be enforced while it is written.
const NOT_ENFORCED: [&str; 16] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Keywords whose values are numbers, texts and lists of texts.
const PLAIN: [&str; 14] = [
    "type",
    "required",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
];

/// A schema in parts: the whole is the first, and references name the others.
#[derive(Debug)]
pub(super) struct Normal {
    pub(super) definitions: Vec<Value>,
    pub(super) ignored: BTreeSet<String>,
}

/// # Errors
/// If `root` is too large or malformed. What its keywords' values must be is checked by
/// `llguidance`, where it isn't needed here.
pub(super) fn normalize(root: &Value) -> Result<Normal, ConstraintError> {
    let mut writer = Writer::new(root);
    let mut definitions = Vec::new();
    let mut reach = 0;
    while let Some(&target) = writer.targets.get(definitions.len()) {
        writer.deepest = 0;
        definitions.push(writer.schema(target, 1)?);
        reach += writer.deepest;
        if reach > REFERENCE_REACH_MAX {
            return Err(over(REFERENCE_REACH_MAX, "levels of schemas along its references"));
        }
    }
    Ok(Normal { definitions, ignored: writer.ignored })
}

struct Writer<'a> {
    root: &'a Value,
    /// Where references lead, in the order in which they were met; the root is the first.
    targets: Vec<&'a Value>,
    /// Place of each in `targets`.
    numbers: HashMap<*const Value, usize>,
    ignored: BTreeSet<String>,
    deepest: usize,
    nodes: usize,
    text_bytes: usize,
    properties: usize,
    pattern_properties: usize,
    chooses_properties: bool,
    /// Whether an object has no properties but those that are named, where nothing is said.
    closes_objects: bool,
    multiple: CommonMultiple,
}

impl<'a> Writer<'a> {
    fn new(root: &'a Value) -> Self {
        Self {
            root,
            targets: vec![root],
            numbers: HashMap::from([(std::ptr::from_ref(root), 0)]),
            ignored: BTreeSet::new(),
            deepest: 0,
            nodes: 0,
            text_bytes: 0,
            properties: 0,
            pattern_properties: 0,
            chooses_properties: false,
            closes_objects: !combines(root),
            multiple: CommonMultiple::new(),
        }
    }

    fn schema(&mut self, schema: &'a Value, depth: usize) -> Result<Value, ConstraintError> {
        self.count_node(depth)?;
        let keywords = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(keywords) => keywords,
            _ => return Err(ConstraintError::invalid("a schema is an object or a boolean")),
        };
        let mut written = Map::new();
        for (keyword, value) in keywords {
            if let Some(value) = self.keyword(keyword, value, depth)? {
                written.insert(keyword.clone(), value);
            }
        }
        let unnamed = keywords.get("required").map_or(0, |required| unnamed(required, keywords));
        self.count_properties(unnamed)?;
        one_of_as_any_of(&mut written);
        if self.closes_objects {
            close_object(&mut written);
        }
        bound_integer(&mut written);
        Ok(Value::Object(written))
    }

    /// What is written for `value`; `None` if the keyword isn't enforced.
    fn keyword(
        &mut self,
        keyword: &str,
        value: &'a Value,
        depth: usize,
    ) -> Result<Option<Value>, ConstraintError> {
        Ok(Some(match keyword {
            "$ref" => Value::String(reference(self.follow(value)?)),
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => self.list(keyword, value, depth)?,
            "items" | "additionalItems" if value.is_array() => self.list(keyword, value, depth)?,
            "items" | "additionalItems" | "additionalProperties" => {
                self.schema(value, depth + 1)?
            }
            "properties" | "patternProperties" => self.named(keyword, value, depth)?,
            "const" | "enum" => self.data(value, depth)?,
            "multipleOf" => {
                self.multiple.add(value)?;
                value.clone()
            }
            _ if PLAIN.contains(&keyword) => {
                self.plain(keyword, value)?;
                self.data(value, depth)?
            }
            _ => {
                if NOT_ENFORCED.contains(&keyword) && *value != Value::Bool(false) {
                    self.ignored.insert(format!("\"{keyword}\" is not enforced"));
                }
                return Ok(None);
            }
        }))
    }

    fn list(
        &mut self,
        keyword: &str,
        value: &'a Value,
        depth: usize,
    ) -> Result<Value, ConstraintError> {
        let schemas = value
            .as_array()
            .ok_or_else(|| ConstraintError::invalid(&format!("\"{keyword}\" is a list")))?;
        schemas.iter().map(|schema| self.schema(schema, depth + 1)).collect()
    }

    fn named(
        &mut self,
        keyword: &str,
        value: &'a Value,
        depth: usize,
    ) -> Result<Value, ConstraintError> {
        let schemas = value
            .as_object()
            .ok_or_else(|| ConstraintError::invalid(&format!("\"{keyword}\" is an object")))?;
        if keyword == "properties" {
            self.count_properties(schemas.len())?;
        } else {
            self.pattern_properties += schemas.len();
            if self.pattern_properties > PATTERN_PROPERTIES_MAX {
                return Err(over(PATTERN_PROPERTIES_MAX, "entries in \"patternProperties\""));
            }
        }
        let named = schemas.iter().map(|(name, schema)| {
            self.count_name(name)?;
            Ok((name.clone(), self.schema(schema, depth + 1)?))
        });
        Ok(Value::Object(named.collect::<Result<_, ConstraintError>>()?))
    }

    /// A value that is no schema.
    fn data(&mut self, value: &Value, depth: usize) -> Result<Value, ConstraintError> {
        self.count_node(depth)?;
        match value {
            Value::String(text) => self.count_text(text.len())?,
            Value::Array(values) => {
                values.iter().try_for_each(|value| self.data(value, depth + 1).map(drop))?;
            }
            Value::Object(fields) => {
                self.count_properties(fields.len())?;
                for (name, value) in fields {
                    self.count_name(name)?;
                    self.data(value, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(value.clone())
    }

    fn plain(&mut self, keyword: &str, value: &Value) -> Result<(), ConstraintError> {
        match keyword {
            "pattern" if value.as_str().is_some_and(|text| text.len() > PATTERN_BYTES_MAX) => {
                Err(over(PATTERN_BYTES_MAX, "bytes in a \"pattern\""))
            }
            "required" => {
                let mut names = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                names.try_for_each(|name| self.count_name(name))
            }
            "type" if value.as_array().is_some_and(|types| repeats(types)) => {
                Err(ConstraintError::invalid("\"type\" names a type twice"))
            }
            "minProperties" | "maxProperties" => {
                self.chooses_properties = true;
                self.count_properties(0)
            }
            _ => Ok(()),
        }
    }

    /// The number of what a reference leads to.
    fn follow(&mut self, value: &Value) -> Result<usize, ConstraintError> {
        let text = value.as_str().ok_or_else(|| ConstraintError::invalid("\"$ref\" is a text"))?;
        let pointer = match text {
            "#" | "#/" => "",
            _ => text.strip_prefix('#').filter(|pointer| pointer.starts_with('/')).ok_or_else(
                || {
                    ConstraintError::invalid(&format!(
                        "\"$ref\" must begin with #/ and stay within the schema, {text:?} \
                         does not"
                    ))
                },
            )?,
        };
        let target = self.root.pointer(pointer).ok_or_else(|| {
            ConstraintError::invalid(&format!("\"$ref\" leads nowhere: {text:?}"))
        })?;
        let next = self.targets.len();
        let number = *self.numbers.entry(std::ptr::from_ref(target)).or_insert(next);
        if number == next {
            self.targets.push(target);
        }
        Ok(number)
    }

    fn count_node(&mut self, depth: usize) -> Result<(), ConstraintError> {
        self.deepest = self.deepest.max(depth);
        self.nodes += 1;
        if depth > SCHEMA_DEPTH_MAX {
            return Err(over(SCHEMA_DEPTH_MAX, "levels"));
        }
        if self.nodes > SCHEMA_NODES_MAX {
            return Err(over(SCHEMA_NODES_MAX, "values"));
        }
        Ok(())
    }

    fn count_text(&mut self, bytes: usize) -> Result<(), ConstraintError> {
        self.text_bytes += bytes;
        if self.text_bytes > SCHEMA_TEXT_BYTES_MAX {
            return Err(over(SCHEMA_TEXT_BYTES_MAX, "bytes of names and texts"));
        }
        Ok(())
    }

    fn count_name(&mut self, name: &str) -> Result<(), ConstraintError> {
        if name.len() > PROPERTY_NAME_BYTES_MAX {
            return Err(over(PROPERTY_NAME_BYTES_MAX, "bytes in a property's name"));
        }
        self.count_text(name.len())
    }

    fn count_properties(&mut self, more: usize) -> Result<(), ConstraintError> {
        self.properties += more;
        if self.properties > PROPERTIES_MAX {
            return Err(over(PROPERTIES_MAX, "properties"));
        }
        if self.chooses_properties && self.properties > CHOSEN_PROPERTIES_MAX {
            return Err(over(
                CHOSEN_PROPERTIES_MAX,
                "properties if it has \"minProperties\" or \"maxProperties\"",
            ));
        }
        Ok(())
    }
}

fn repeats(values: &[Value]) -> bool {
    let mut rest = values;
    while let Some((first, others)) = rest.split_first() {
        if others.contains(first) {
            return true;
        }
        rest = others;
    }
    false
}

/// How many of the names in `required` are not among the properties of the same schema.
fn unnamed(required: &Value, keywords: &Map<String, Value>) -> usize {
    let properties = keywords.get("properties").and_then(Value::as_object);
    required
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|&name| !properties.is_some_and(|properties| properties.contains_key(name)))
        .count()
}

/// Whether several schemas are to hold together somewhere: one may not close what another adds to.
fn combines(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(keyword, value)| {
            keyword == "allOf" && value.as_array().is_some_and(|all| all.len() > 1)
                || combines(value)
        }),
        Value::Array(values) => values.iter().any(combines),
        _ => false,
    }
}

/// An object whose properties are named has no others, where nothing is said: JSON Schema allows
/// them, and a model would go on inventing some. llama.cpp's converter, and so Ollama, does the same.
fn close_object(written: &mut Map<String, Value>) {
    const SAID: [&str; 6] =
        ["additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"];
    if written.contains_key("properties") && !SAID.iter().any(|said| written.contains_key(*said)) {
        written.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// An integer without bounds is one that a double holds exactly: a model would go on writing digits.
fn bound_integer(written: &mut Map<String, Value>) {
    const MOST: i64 = (1 << 53) - 1;
    if written.get("type").and_then(Value::as_str) != Some("integer") {
        return;
    }
    for (bound, other, most) in
        [("minimum", "exclusiveMinimum", -MOST), ("maximum", "exclusiveMaximum", MOST)]
    {
        if !written.contains_key(bound) && !written.contains_key(other) {
            written.insert(bound.to_owned(), Value::from(most));
        }
    }
}

/// `oneOf` is enforced as `anyOf`: `llguidance` would do the same, after comparing each option with
/// each other.
fn one_of_as_any_of(keywords: &mut Map<String, Value>) {
    if keywords.contains_key("anyOf") {
        if let Some(options) = keywords.shift_remove("oneOf") {
            let mut any_of = Map::new();
            any_of.insert("anyOf".to_owned(), options);
            let all_of = keywords.entry("allOf").or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(all_of) = all_of {
                all_of.push(Value::Object(any_of));
            }
        }
        return;
    }
    if keywords.contains_key("oneOf") {
        *keywords = std::mem::take(keywords)
            .into_iter()
            .map(|(keyword, value)| match keyword.as_str() {
                "oneOf" => ("anyOf".to_owned(), value),
                _ => (keyword, value),
            })
            .collect();
    }
}
