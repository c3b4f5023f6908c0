//! What combining makes of a schema.
//!
//! Where keywords of one schema meet (`allOf`, alternatives or a reference beside others),
//! `llguidance` intersects them: each alternative of the one with each of the other, with copies of
//! all that is within, references resolved. A small schema can ask for gigabytes that way, so the
//! sizes are estimated here, from above, before anything is copied.

use serde_json::{Map, Value};

use crate::error::ConstraintError;
use crate::limits::{COMBINED_NODES_MAX, COMBINED_PATTERNS_MAX};
use crate::schema::{over, referred};

/// What a schema without a `type` stands for: one alternative per type of JSON.
const TYPES: usize = 6;

/// # Errors
/// If `definitions` become too large when they are combined.
pub(super) fn check(definitions: &[Value]) -> Result<(), ConstraintError> {
    let mut estimate = Estimate { definitions, resolved: vec![Resolved::Not; definitions.len()] };
    let mut nodes = 0_usize;
    for definition in definitions {
        let size = estimate.schema(definition, false);
        nodes = nodes.saturating_add(size.nodes);
        if nodes > COMBINED_NODES_MAX {
            return Err(over(COMBINED_NODES_MAX, "values when its parts are combined"));
        }
        if size.patterns > COMBINED_PATTERNS_MAX {
            return Err(over(COMBINED_PATTERNS_MAX, "patterns and formats for one text"));
        }
    }
    Ok(())
}

/// The size of a schema after combining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    /// Alternatives with which something else would be intersected one by one, those of nested
    /// schemas included.
    alternatives: usize,
    /// Values of it.
    nodes: usize,
    /// The most patterns that one text has to match.
    patterns: usize,
}

impl Size {
    const ONE: Self = Self { alternatives: 1, nodes: 1, patterns: 0 };

    /// Of the intersection of both.
    fn and(self, other: Self) -> Self {
        Self {
            alternatives: self.alternatives.saturating_mul(other.alternatives),
            nodes: self
                .alternatives
                .saturating_mul(other.nodes)
                .saturating_add(other.alternatives.saturating_mul(self.nodes)),
            patterns: self.patterns.saturating_add(other.patterns),
        }
    }

    /// Of a schema that has both in different places.
    fn beside(self, other: Self) -> Self {
        Self {
            alternatives: self.alternatives.max(other.alternatives),
            nodes: self.nodes.saturating_add(other.nodes),
            patterns: self.patterns.max(other.patterns),
        }
    }

    /// Of the union of both.
    fn or(self, other: Self) -> Self {
        Self {
            alternatives: self.alternatives.saturating_add(other.alternatives),
            ..self.beside(other)
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Resolved {
    Not,
    /// Being resolved: a reference to it from within is not resolved once more.
    Now,
    To(Size),
}

struct Estimate<'a> {
    definitions: &'a [Value],
    resolved: Vec<Resolved>,
}

impl Estimate<'_> {
    /// The size of `schema`; `combined` if it meets another, so that its references are resolved.
    fn schema(&mut self, schema: &Value, combined: bool) -> Size {
        let Value::Object(keywords) = schema else { return Size::ONE };
        let parts = keywords.iter().map(|(keyword, value)| match keyword.as_str() {
            "allOf" => value.as_array().map_or(0, Vec::len),
            "anyOf" | "enum" | "const" | "$ref" => 1,
            _ => 0,
        });
        let own = keywords.keys().any(|keyword| !is_applicator(keyword));
        let combined = combined || parts.sum::<usize>() + usize::from(own) > 1;
        let mut size = if own { Some(self.own(keywords, combined)) } else { None };
        let mut meet = |part: Size| size = Some(size.map_or(part, |size| size.and(part)));
        for (keyword, value) in keywords {
            let values = value.as_array().map(Vec::as_slice).unwrap_or_default();
            match keyword.as_str() {
                "allOf" => values.iter().for_each(|value| meet(self.schema(value, combined))),
                "anyOf" => meet(union(values.iter().map(|value| self.schema(value, combined)))),
                "enum" => meet(union(values.iter().map(data))),
                "const" => meet(data(value)),
                "$ref" if combined => meet(self.reference(value)),
                "$ref" => meet(Size::ONE),
                _ => {}
            }
        }
        size.unwrap_or(Size::ONE)
    }

    /// The size of all that isn't an applicator.
    fn own(&mut self, keywords: &Map<String, Value>, combined: bool) -> Size {
        let types = match keywords.get("type") {
            None => TYPES,
            Some(Value::Array(types)) => types.len(),
            Some(_) => 1,
        };
        let mut within = Size::ONE;
        for (keyword, value) in keywords.iter().filter(|(keyword, _)| !is_applicator(keyword)) {
            within = match (keyword.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(schemas)) => schemas
                    .values()
                    .fold(within, |size, value| size.beside(self.schema(value, combined))),
                ("prefixItems" | "items" | "additionalItems", Value::Array(schemas)) => schemas
                    .iter()
                    .fold(within, |size, value| size.beside(self.schema(value, combined))),
                ("items" | "additionalItems" | "additionalProperties", value) => {
                    within.beside(self.schema(value, combined))
                }
                (_, value) => within.beside(Size { alternatives: 1, ..data(value) }),
            };
        }
        let texts = ["pattern", "format"].iter().filter(|&&keyword| keywords.contains_key(keyword));
        Size {
            alternatives: within.alternatives.saturating_mul(types),
            nodes: within.nodes.saturating_mul(types),
            patterns: within.patterns.max(texts.count()),
        }
    }

    fn reference(&mut self, value: &Value) -> Size {
        let number = value.as_str().and_then(referred).unwrap_or(usize::MAX);
        let definitions = self.definitions;
        let (Some(definition), Some(state)) =
            (definitions.get(number), self.resolved.get_mut(number))
        else {
            return Size::ONE;
        };
        match *state {
            Resolved::To(size) => size,
            Resolved::Now => Size::ONE,
            Resolved::Not => {
                *state = Resolved::Now;
                let size = self.schema(definition, true);
                if let Some(state) = self.resolved.get_mut(number) {
                    *state = Resolved::To(size);
                }
                size
            }
        }
    }
}

fn is_applicator(keyword: &str) -> bool {
    matches!(keyword, "allOf" | "anyOf" | "enum" | "const" | "$ref")
}

fn union(sizes: impl Iterator<Item = Size>) -> Size {
    sizes.reduce(Size::or).unwrap_or(Size::ONE)
}

/// The size of a value that is no schema.
fn data(value: &Value) -> Size {
    let nodes = match value {
        Value::Array(values) => values.iter().map(|value| data(value).nodes).sum::<usize>() + 1,
        Value::Object(fields) => fields.values().map(|value| data(value).nodes).sum::<usize>() + 1,
        _ => 1,
    };
    Size { nodes, ..Size::ONE }
}
