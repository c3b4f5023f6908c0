//! The tests of Jinja2 (`x is defined`), with Python's meaning.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value};

use super::add_test;
use super::args::Args;
use super::operators::{contains, same};

/// Whether a value is of some kind.
type Kind = fn(&Value) -> bool;

pub(super) fn register(environment: &mut Environment<'static>) {
    let kinds: [(&'static str, Kind); 12] = [
        ("boolean", |value| value.kind() == ValueKind::Bool),
        ("true", |value| value.kind() == ValueKind::Bool && value.is_true()),
        ("false", |value| value.kind() == ValueKind::Bool && !value.is_true()),
        ("integer", Value::is_integer),
        ("float", |value| value.kind() == ValueKind::Number && !value.is_integer()),
        ("number", |value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool)),
        ("string", |value| value.kind() == ValueKind::String),
        ("mapping", |value| value.kind() == ValueKind::Map),
        // All that has a length and items, and so texts and dictionaries too.
        ("sequence", is_sequence),
        ("iterable", is_iterable),
        ("callable", |value| value.kind() == ValueKind::Plain),
        ("escaped", |_| false),
    ];
    for (name, is) in kinds {
        add_test(environment, name, move |args| Ok(is(&args.first()?)));
    }
    for (name, remainder) in [("odd", 1), ("even", 0)] {
        add_test(environment, name, move |args| {
            Ok(i128::try_from(args.first()?)?.rem_euclid(2) == remainder)
        });
    }
    add_test(environment, "divisibleby", |args| {
        let (value, by) =
            (i128::try_from(args.first()?)?, i128::try_from(args.required(1, "num")?)?);
        Ok(value.checked_rem(by) == Some(0))
    });
    for name in ["eq", "equalto", "=="] {
        add_test(environment, name, compared);
    }
    for name in ["ne", "!="] {
        add_test(environment, name, |args| compared(args).map(|equal| !equal));
    }
    // `x is in y` is translated to the first name, for minijinja knows `in` as an operator.
    for name in ["contained", "in"] {
        add_test(environment, name, |args| {
            contains(args, &args.required(1, "seq")?, &args.first()?)
        });
    }
    add_test(environment, "sameas", |args| {
        let (a, b) = (args.first()?, args.required(1, "other")?);
        Ok(a.kind() == b.kind() && same(args, &a, &b)?)
    });
    for (name, is_cased) in [("lower", false), ("upper", true)] {
        add_test(environment, name, move |args| {
            let text = args.first_text()?;
            let wrong = |c: char| if is_cased { c.is_lowercase() } else { c.is_uppercase() };
            Ok(!text.chars().any(wrong) && text.chars().any(char::is_alphabetic))
        });
    }
}

fn compared(args: &Args<'_, '_, '_>) -> Result<bool, Error> {
    same(args, &args.first()?, &args.required(1, "other")?)
}

fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
    )
}

/// Undefined is iterable in Jinja2: it has no items.
fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.is_undefined()
}
