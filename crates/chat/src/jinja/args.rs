//! Arguments as Python binds them: by place or by name.

use std::sync::Arc;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::{python, work};

/// The arguments of a filter, test, method or function. The first is what a filter is applied to.
pub(super) struct Args<'s, 't, 'e> {
    pub(super) state: &'s State<'t, 'e>,
    positional: Vec<Value>,
    named: Option<Kwargs>,
}

impl<'s, 't, 'e> Args<'s, 't, 'e> {
    /// Takes `values` apart, and charges a look at each.
    pub(super) fn new(
        state: &'s State<'t, 'e>,
        Rest(mut values): Rest<Value>,
    ) -> Result<Args<'s, 't, 'e>, Error> {
        let named = match values.last() {
            Some(last) if last.is_kwargs() => values.pop().map(Kwargs::try_from).transpose()?,
            _ => None,
        };
        for value in &values {
            work::charge_value(state, value)?;
        }
        Ok(Args { state, positional: values, named })
    }

    /// The argument at this place or of this name, if it was given.
    pub(super) fn get(&self, at: usize, name: &str) -> Option<Value> {
        let named = || self.named.as_ref().and_then(|named| named.get::<Value>(name).ok());
        self.positional.get(at).cloned().or_else(named)
    }

    /// What is operated on.
    pub(super) fn first(&self) -> Result<Value, Error> {
        self.required(0, "value")
    }

    pub(super) fn required(&self, at: usize, name: &str) -> Result<Value, Error> {
        self.get(at, name).ok_or_else(|| {
            Error::new(ErrorKind::MissingArgument, format!("the argument {name:?} is missing"))
        })
    }

    /// What is operated on, as text; `soft_str` in Jinja2.
    pub(super) fn first_text(&self) -> Result<Arc<str>, Error> {
        let value = self.first()?;
        match value.to_str() {
            Some(text) => Ok(text),
            None => python::text(self.state, &value).map(Arc::from),
        }
    }

    /// A text that must be one.
    pub(super) fn text(&self, at: usize, name: &str) -> Result<Option<Arc<str>>, Error> {
        match self.get(at, name) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) => value.to_str().map(Some).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, format!("{name:?} must be a text"))
            }),
        }
    }

    /// A whole number.
    pub(super) fn integer(&self, at: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.get(at, name) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) => i64::try_from(value).map(Some),
        }
    }

    /// Whether something is true in Python's sense; false if it was not given.
    pub(super) fn is_true(&self, at: usize, name: &str) -> bool {
        self.get(at, name).is_some_and(|value| value.is_true())
    }

    /// All that was given by place, what is operated on excluded.
    pub(super) fn rest(&self) -> &[Value] {
        self.positional.get(1..).unwrap_or_default()
    }

    /// All of them again, to be passed on.
    pub(super) fn all_but(&self, first: usize) -> Vec<Value> {
        let mut all = self.positional.get(first..).unwrap_or_default().to_vec();
        all.extend(self.named.clone().map(Value::from));
        all
    }

    pub(super) fn positional(&self) -> &[Value] {
        &self.positional
    }
}

/// The items of a list, the characters of a text, the keys of a dictionary.
pub(super) fn items(state: &State<'_, '_>, value: &Value) -> Result<Vec<Value>, Error> {
    if let Some(text) = value.as_str() {
        work::charge(state, text.len().saturating_mul(work::VALUE_BYTES))?;
        return Ok(text.chars().map(Value::from).collect());
    }
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain => {
            work::charge_value(state, value)?;
            Ok(value.try_iter()?.collect())
        }
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} is not iterable"))),
    }
}
