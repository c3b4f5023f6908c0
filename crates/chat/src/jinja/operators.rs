//! Operators of expressions, with Python's meaning.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::args::{Args, items};
use super::{add_function, formats, methods, python, work};

pub(super) fn register(environment: &mut Environment<'static>) {
    add_function(environment, "__add", |args| fold(args, add));
    add_function(environment, "__sub", |args| fold(args, |_, a, b| arithmetic("-", a, b)));
    add_function(environment, "__mul", |args| fold(args, multiply));
    add_function(environment, "__div", |args| fold(args, |_, a, b| arithmetic("/", a, b)));
    add_function(environment, "__floordiv", |args| fold(args, |_, a, b| arithmetic("//", a, b)));
    add_function(environment, "__mod", |args| fold(args, modulo));
    add_function(environment, "__pow", |args| fold(args, |_, a, b| arithmetic("**", a, b)));
    add_function(environment, "__neg", |args| {
        // Not a difference from zero: that has no sign if it is zero.
        arithmetic("*", &Value::from(-1), &args.first()?)
    });
    add_function(environment, "__pos", |args| arithmetic("+", &Value::from(0), &args.first()?));
    add_function(environment, "__float", |args| {
        let digits = args.first_text()?;
        digits.parse::<f64>().map(Value::from).map_err(|e| invalid(e.to_string()))
    });
    add_function(environment, "__concat", concat);
    add_function(environment, "__eq", |args| equal(args).map(Value::from));
    add_function(environment, "__ne", |args| equal(args).map(|equal| Value::from(!equal)));
    add_function(environment, "__lt", |args| compare(args, Ordering::is_lt));
    add_function(environment, "__le", |args| compare(args, Ordering::is_le));
    add_function(environment, "__gt", |args| compare(args, Ordering::is_gt));
    add_function(environment, "__ge", |args| compare(args, Ordering::is_ge));
    add_function(environment, "__in", |args| contained(args).map(Value::from));
    add_function(environment, "__not_in", |args| contained(args).map(|is| Value::from(!is)));
    add_function(environment, "__item", item);
    add_function(environment, "__slice", slice);
    add_function(environment, "__attribute", attribute);
    add_function(environment, "__call", methods::call);
    add_function(environment, "__iterate", |args| match args.first()? {
        value if value.kind() == ValueKind::String => items(args.state, &value).map(Value::from),
        value if matches!(value.kind(), ValueKind::None | ValueKind::Number | ValueKind::Bool) => {
            Err(invalid(format!("{} is not iterable", value.kind())))
        }
        value => Ok(value),
    });
    // What is kept may be wrapped again in the next round of a loop: here nesting is bounded.
    add_function(environment, "__keep", |args| {
        let value = args.first()?;
        work::charge_tree(args.state, &value)?;
        Ok(value)
    });
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

type Binary = fn(&Args<'_, '_, '_>, &Value, &Value) -> Result<Value, Error>;

fn fold(args: &Args<'_, '_, '_>, operation: Binary) -> Result<Value, Error> {
    let mut result = args.first()?;
    for value in args.rest() {
        result = operation(args, &result, value)?;
    }
    Ok(result)
}

fn add(args: &Args<'_, '_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        work::charge(args.state, a.len().saturating_add(b.len()))?;
        return Ok(Value::from([a, b].concat()));
    }
    if is_list(a) && is_list(b) {
        let mut all = items(args.state, a)?;
        all.extend(items(args.state, b)?);
        return Ok(Value::from(all));
    }
    arithmetic("+", a, b)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn multiply(args: &Args<'_, '_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    let (repeated, times) = match (integer(a), integer(b)) {
        (None, Some(times)) => (a, times),
        (Some(times), None) => (b, times),
        _ => return arithmetic("*", a, b),
    };
    let times = usize::try_from(times.max(0)).map_err(|e| invalid(e.to_string()))?;
    if let Some(text) = repeated.as_str() {
        work::charge(args.state, text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    if is_list(repeated) {
        let once = items(args.state, repeated)?;
        work::charge(
            args.state,
            once.len().saturating_mul(times).saturating_mul(work::VALUE_BYTES),
        )?;
        return Ok(Value::from(std::iter::repeat_n(once, times).flatten().collect::<Vec<_>>()));
    }
    arithmetic("*", a, b)
}

fn modulo(args: &Args<'_, '_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    match a.as_str() {
        Some(format) => formats::percent(args.state, format, b).map(Value::from),
        None => arithmetic("%", a, b),
    }
}

/// A whole number or a truth value, which counts as one in Python.
fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Number | ValueKind::Bool if integer(value).is_none() => {
            f64::try_from(value.clone()).ok()
        }
        // Beyond 2^53 the nearest float, as in Python.
        #[allow(clippy::cast_precision_loss)]
        _ => integer(value).map(|n| n as f64),
    }
}

fn arithmetic(operator: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    let wrong = || {
        if a.is_undefined() || b.is_undefined() {
            return Error::new(ErrorKind::UndefinedError, format!("{operator} of undefined value"));
        }
        invalid(format!("{operator} can't be applied to {} and {}", a.kind(), b.kind()))
    };
    if operator != "/"
        && let (Some(a), Some(b)) = (integer(a), integer(b))
    {
        let exponent = u32::try_from(b).ok();
        if operator != "**" || exponent.is_some() {
            let result = match operator {
                "+" => a.checked_add(b),
                "-" => a.checked_sub(b),
                "*" => a.checked_mul(b),
                "**" => exponent.and_then(|exponent| a.checked_pow(exponent)),
                // Python rounds down; `checked_*` refuse zero.
                "//" => a.checked_div(b).map(|q| q - i128::from(a % b != 0 && (a < 0) != (b < 0))),
                _ => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
            };
            return result.map(Value::from).ok_or_else(|| invalid("the number is out of range"));
        }
    }
    let (Some(x), Some(y)) = (number(a), number(b)) else {
        return Err(wrong());
    };
    if matches!(operator, "/" | "//" | "%") && y == 0.0 {
        return Err(invalid("division by zero"));
    }
    Ok(Value::from(match operator {
        "+" => x + y,
        "-" => x - y,
        "*" => x * y,
        "/" => x / y,
        "**" => x.powf(y),
        "//" => (x / y).floor(),
        _ => x - y * (x / y).floor(),
    }))
}

fn concat(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let mut out = String::new();
    for value in args.positional() {
        match value.as_str() {
            Some(text) => out.push_str(text),
            None => out.push_str(&python::text(args.state, value)?),
        }
    }
    work::charge(args.state, out.len())?;
    Ok(Value::from(out))
}

fn equal(args: &Args<'_, '_, '_>) -> Result<bool, Error> {
    let (a, b) = (args.first()?, args.required(1, "other")?);
    same(args, &a, &b)
}

/// `==`. Truth values are numbers, as in Python.
pub(super) fn same(args: &Args<'_, '_, '_>, a: &Value, b: &Value) -> Result<bool, Error> {
    if a.kind() != b.kind()
        && let (Some(a), Some(b)) = (number(a), number(b))
    {
        return Ok(a == b);
    }
    if a.len().is_some() && a.kind() == b.kind() && a.kind() != ValueKind::String {
        work::charge_tree(args.state, a)?;
        work::charge_tree(args.state, b)?;
    }
    Ok(a == b)
}

fn compare(args: &Args<'_, '_, '_>, accept: fn(Ordering) -> bool) -> Result<Value, Error> {
    let (a, b) = (args.first()?, args.required(1, "other")?);
    let order = match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => Some(a.cmp(b)),
        _ => match (integer(&a), integer(&b)) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ if is_list(&a) && is_list(&b) => {
                work::charge_tree(args.state, &a)?;
                work::charge_tree(args.state, &b)?;
                Some(a.cmp(&b))
            }
            _ => match (number(&a), number(&b)) {
                (Some(a), Some(b)) => {
                    return Ok(Value::from(a.partial_cmp(&b).is_some_and(accept)));
                }
                _ => None,
            },
        },
    };
    match order {
        Some(order) => Ok(Value::from(accept(order))),
        None => Err(invalid(format!("{} and {} have no order", a.kind(), b.kind()))),
    }
}

fn contained(args: &Args<'_, '_, '_>) -> Result<bool, Error> {
    let (needle, container) = (args.first()?, args.required(1, "container")?);
    contains(args, &container, &needle)
}

/// `needle in container`.
pub(super) fn contains(
    args: &Args<'_, '_, '_>,
    container: &Value,
    needle: &Value,
) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        return match needle.as_str() {
            Some(needle) => Ok(text.contains(needle)),
            None if needle.is_undefined() => Ok(true),
            None => Err(invalid(format!("a text can't contain {}", needle.kind()))),
        };
    }
    if container.kind() == ValueKind::Map {
        return Ok(container.get_item(needle).is_ok_and(|value| !value.is_undefined()));
    }
    for item in items(args.state, container)? {
        if same(args, &item, needle)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn item(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let (value, key) = (args.first()?, args.required(1, "key")?);
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let listed = value.kind() == ValueKind::String || is_list(&value);
    let Some(index) = integer(&key).filter(|_| listed) else {
        return Ok(value.get_item(&key).unwrap_or(Value::UNDEFINED));
    };
    if let Some(text) = value.as_str() {
        let place =
            usize::try_from(if index < 0 { -1 - index } else { index }).unwrap_or(usize::MAX);
        let mut chars = text.chars();
        let found = if index < 0 { chars.nth_back(place) } else { chars.nth(place) };
        return Ok(found.map_or(Value::UNDEFINED, Value::from));
    }
    let length = value.len().map_or_else(|| items(args.state, &value).map(|all| all.len()), Ok)?;
    let index = if index < 0 { index + length as i128 } else { index };
    match usize::try_from(index) {
        Ok(index) if value.kind() == ValueKind::Seq => {
            Ok(value.get_item_by_index(index).unwrap_or(Value::UNDEFINED))
        }
        Ok(index) => {
            let all = items(args.state, &value)?;
            Ok(all.into_iter().nth(index).unwrap_or(Value::UNDEFINED))
        }
        Err(_) => Ok(Value::UNDEFINED),
    }
}

fn slice(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let value = args.first()?;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    if !is_list(&value) && value.as_str().is_none() {
        return Err(invalid(format!("{} has no slices", value.kind())));
    }
    let all = items(args.state, &value)?;
    let step = args.integer(3, "step")?.unwrap_or(1);
    let length = i64::try_from(all.len()).unwrap_or(i64::MAX);
    // The bounds of Python's `slice.indices`.
    let (low, high) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let clamp = |bound: i64| {
        let bound = if bound < 0 { bound.saturating_add(length) } else { bound };
        bound.clamp(low, high)
    };
    let from = args.integer(1, "from")?.map_or(if step < 0 { high } else { low }, clamp);
    let to = args.integer(2, "to")?.map_or(if step < 0 { low } else { high }, clamp);
    let mut chosen = Vec::new();
    let mut at = from;
    match step {
        0 => return Err(invalid("a slice's step can't be zero")),
        _ => {
            while if step > 0 { at < to } else { at > to } {
                chosen.extend(usize::try_from(at).ok().and_then(|at| all.get(at)).cloned());
                at = at.saturating_add(step);
            }
        }
    }
    match value.kind() {
        ValueKind::String => {
            Ok(Value::from(chosen.iter().filter_map(Value::as_str).collect::<String>()))
        }
        _ => Ok(Value::from(chosen)),
    }
}

/// An attribute that is also a method of dictionaries, and in Python always that.
fn attribute(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let (value, name) = (args.first()?, args.required(1, "name")?);
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::Map => Ok(Value::from_function(|| Value::UNDEFINED)),
        _ => Ok(value.get_attr(name.as_str().unwrap_or_default()).unwrap_or(Value::UNDEFINED)),
    }
}
