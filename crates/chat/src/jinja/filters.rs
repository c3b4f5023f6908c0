//! The filters of Jinja2 and of Hugging Face's templates.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, filters};

use super::args::{Args, items};
use super::operators::{invalid, same};
use super::{add_filter, formats, json, methods, python, work};

pub(super) fn register(environment: &mut Environment<'static>) {
    texts(environment);
    numbers(environment);
    lists(environment);
    add_filter(environment, "tojson", json::to_json);
    for name in ["default", "d"] {
        add_filter(environment, name, |args| {
            let value = args.first()?;
            let replace = value.is_undefined() || (args.is_true(2, "boolean") && !value.is_true());
            match replace {
                true => Ok(args.get(1, "default_value").unwrap_or_else(|| Value::from(""))),
                false => Ok(value),
            }
        });
    }
    add_filter(environment, "attr", |args| {
        let name = args.required(1, "name")?;
        Ok(args.first()?.get_attr(name.as_str().unwrap_or_default()).unwrap_or(Value::UNDEFINED))
    });
    // Not in Jinja2: llama.cpp offers it, and templates that find it use it.
    add_filter(environment, "from_json", |args| {
        let text = args.first_text()?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        Ok(Value::from_serialize(value))
    });
}

fn texts(environment: &mut Environment<'static>) {
    add_filter(environment, "string", |args| args.first_text().map(Value::from));
    add_filter(environment, "safe", |args| args.first_text().map(Value::from));
    for (name, method) in
        [("capitalize", "capitalize"), ("lower", "lower"), ("upper", "upper"), ("trim", "strip")]
    {
        add_filter(environment, name, move |args| {
            let text = args.first_text()?;
            methods::text(args, &text, method)
        });
    }
    add_filter(environment, "replace", |args| {
        let text = args.first_text()?;
        methods::text(args, &text, "replace")
    });
    add_filter(environment, "title", |args| {
        // Unlike `str.title`, only blanks, hyphens and brackets begin a word.
        let mut begins = true;
        let title = |c: char| {
            let upper = std::mem::replace(
                &mut begins,
                c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<'),
            );
            if upper { c.to_uppercase().to_string() } else { c.to_lowercase().to_string() }
        };
        Ok(Value::from(args.first_text()?.chars().map(title).collect::<String>()))
    });
    add_filter(environment, "indent", indent);
    add_filter(environment, "center", |args| {
        let text = args.first_text()?;
        let width = usize::try_from(args.integer(1, "width")?.unwrap_or(80)).unwrap_or(0);
        work::charge(args.state, width)?;
        let margin = width.saturating_sub(text.chars().count());
        // The odd blank is Python's: on the left if the width is odd.
        let left = margin / 2 + (margin & width & 1);
        Ok(Value::from([&" ".repeat(left), &*text, &" ".repeat(margin - left)].concat()))
    });
    add_filter(environment, "wordcount", |args| {
        let text = args.first_text()?;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        Ok(Value::from(text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count()))
    });
    for name in ["e", "escape", "forceescape"] {
        add_filter(environment, name, |args| {
            let text = args.first_text()?;
            work::charge(args.state, text.len().saturating_mul(5))?;
            let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            Ok(Value::from(text.replace('\'', "&#39;").replace('"', "&#34;")))
        });
    }
    add_filter(environment, "format", |args| {
        let format = args.first_text()?;
        formats::percent_values(args.state, &format, &args.all_but(1)).map(Value::from)
    });
}

fn indent(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let text = args.first_text()?;
    let prefix = match args.get(1, "width") {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(prefix) => prefix.to_owned(),
            None => {
                let width = usize::try_from(i64::try_from(width.clone())?).unwrap_or(0);
                work::charge(args.state, width)?;
                " ".repeat(width)
            }
        },
    };
    let (first, blank) = (args.is_true(2, "first"), args.is_true(3, "blank"));
    work::charge(args.state, text.matches('\n').count().saturating_mul(prefix.len()))?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || !line.is_empty() || i == 0) {
            out.push_str(&prefix);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn numbers(environment: &mut Environment<'static>) {
    add_filter(environment, "int", |args| {
        let value = args.first()?;
        let radix = u32::try_from(args.integer(2, "base")?.unwrap_or(10)).unwrap_or(10);
        let parsed = match value.as_str() {
            Some(text) => integer_of(text.trim(), radix),
            None if value.kind() == ValueKind::Bool => Some(i128::from(value.is_true())),
            None if value.is_integer() => return Ok(value),
            None => f64::try_from(value).ok().and_then(truncated),
        };
        Ok(parsed.map_or_else(|| args.get(1, "default").unwrap_or(Value::from(0)), Value::from))
    });
    add_filter(environment, "float", |args| {
        let value = args.first()?;
        let parsed = match value.as_str() {
            Some(text) => text.trim().parse().ok(),
            None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
            None => f64::try_from(value).ok(),
        };
        Ok(parsed.map_or_else(|| args.get(1, "default").unwrap_or(Value::from(0.0)), Value::from))
    });
    add_filter(environment, "round", |args| {
        let value = args.first()?;
        let precision = args.integer(1, "precision")?.unwrap_or(0).clamp(-300, 300);
        let number = f64::try_from(value.clone())?;
        let scale = 10_f64.powi(i32::try_from(precision).unwrap_or(0));
        let method = args.text(2, "method")?;
        let rounded = match method.as_deref() {
            Some("ceil") => (number * scale).ceil() / scale,
            Some("floor") => (number * scale).floor() / scale,
            // A whole number stays one under Python's `round(n, digits)`.
            _ if value.is_integer() => return Ok(value),
            _ if precision > 0 => {
                let digits = usize::try_from(precision).unwrap_or(0);
                format!("{number:.digits$}").parse().unwrap_or(number)
            }
            _ => (number * scale).round_ties_even() / scale,
        };
        Ok(Value::from(rounded))
    });
    add_filter(environment, "abs", |args| filters::abs(args.first()?));
}

fn integer_of(text: &str, radix: u32) -> Option<i128> {
    let digits = text.replace('_', "");
    let prefixed = ["0x", "0X", "0o", "0O", "0b", "0B"].iter().find_map(|p| digits.strip_prefix(p));
    let digits = if radix == 10 { &digits } else { prefixed.unwrap_or(&digits) };
    let whole = || i128::from_str_radix(digits, radix.clamp(2, 36)).ok();
    whole().or_else(|| text.parse().ok().and_then(truncated))
}

/// The whole part of a number, if it has one that fits.
#[allow(clippy::cast_possible_truncation)]
fn truncated(number: f64) -> Option<i128> {
    (number.is_finite() && number.abs() < 1e37).then(|| number.trunc() as i128)
}

fn lists(environment: &mut Environment<'static>) {
    for name in ["length", "count"] {
        add_filter(environment, name, |args| {
            let value = args.first()?;
            match value.as_str() {
                Some(text) => Ok(Value::from(text.chars().count())),
                None => items(args.state, &value).map(|items| Value::from(items.len())),
            }
        });
    }
    add_filter(environment, "list", |args| items(args.state, &args.first()?).map(Value::from));
    add_filter(environment, "items", |args| {
        let value = args.first()?;
        match value.kind() {
            ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
            ValueKind::Map => methods::dict(args, &value, "items"),
            _ => Err(Error::new(ErrorKind::InvalidOperation, "only a dictionary has items")),
        }
    });
    add_filter(environment, "first", |args| {
        Ok(items(args.state, &args.first()?)?.into_iter().next().unwrap_or(Value::UNDEFINED))
    });
    add_filter(environment, "last", |args| {
        Ok(items(args.state, &args.first()?)?.pop().unwrap_or(Value::UNDEFINED))
    });
    add_filter(environment, "reverse", |args| {
        let value = args.first()?;
        let mut all = items(args.state, &value)?;
        all.reverse();
        match value.kind() {
            ValueKind::String => {
                Ok(all.iter().filter_map(Value::as_str).collect::<String>().into())
            }
            _ => Ok(Value::from(all)),
        }
    });
    add_filter(environment, "join", join);
    add_filter(environment, "map", map);
    for (name, wanted, by_attribute) in [
        ("select", true, false),
        ("reject", false, false),
        ("selectattr", true, true),
        ("rejectattr", false, true),
    ] {
        add_filter(environment, name, move |args| select(args, wanted, by_attribute));
    }
    add_filter(environment, "unique", unique);
    add_filter(environment, "sum", |args| {
        let attribute = args.get(1, "attribute").filter(|name| !name.is_none());
        let mut all = vec![args.get(2, "start").unwrap_or(Value::from(0))];
        for item in items(args.state, &args.first()?)? {
            all.push(attribute.as_ref().map_or(Ok(item.clone()), |name| path(&item, name))?);
        }
        filters::sum(args.state, Value::from(all))
    });
    add_filter(environment, "min", |args| filters::min(args.state, checked(args)?));
    add_filter(environment, "max", |args| filters::max(args.state, checked(args)?));
    add_filter(environment, "sort", |args| {
        let value = checked(args)?;
        let named = [("reverse", 1), ("case_sensitive", 2), ("attribute", 3)];
        filters::sort(args.state, value, given(args, &named))
    });
    add_filter(environment, "dictsort", |args| {
        let value = checked(args)?;
        let named = [("case_sensitive", 1), ("by", 2), ("reverse", 3)];
        filters::dictsort(&value, given(args, &named))
    });
    add_filter(environment, "groupby", |args| {
        let value = checked(args)?;
        let attribute = args.text(1, "attribute")?;
        let named = [("default", 2), ("case_sensitive", 3)];
        filters::groupby(value, attribute.as_deref(), given(args, &named))
    });
}

/// What is filtered, after a walk over it: minijinja's filters compare its items.
fn checked(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let value = args.first()?;
    work::charge_tree(args.state, &value)?;
    Ok(value)
}

/// Those of the arguments that were given, by name.
fn given(args: &Args<'_, '_, '_>, named: &[(&'static str, usize)]) -> Kwargs {
    named.iter().filter_map(|(name, at)| Some((*name, args.get(*at, name)?))).collect()
}

fn join(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let separator = args.text(1, "d")?;
    let attribute = args.get(2, "attribute").filter(|name| !name.is_none());
    let mut out = String::new();
    for (i, item) in items(args.state, &args.first()?)?.into_iter().enumerate() {
        if let Some(separator) = separator.as_deref().filter(|_| i > 0) {
            work::charge(args.state, separator.len())?;
            out.push_str(separator);
        }
        let item = attribute.as_ref().map_or(Ok(item.clone()), |name| path(&item, name))?;
        out.push_str(&python::text(args.state, &item)?);
    }
    Ok(Value::from(out))
}

/// `item.a.b` for the path `a.b`; a number is an index.
fn path(item: &Value, path: &Value) -> Result<Value, Error> {
    let Some(text) = path.as_str() else {
        return Ok(item.get_item(path).unwrap_or(Value::UNDEFINED));
    };
    let mut value = item.clone();
    for part in text.split('.') {
        if value.is_undefined() {
            return Err(Error::from(ErrorKind::UndefinedError));
        }
        value = match part.parse::<i64>() {
            Ok(index) => value.get_item(&Value::from(index)),
            Err(_) => value.get_attr(part),
        }
        .unwrap_or(Value::UNDEFINED);
    }
    Ok(value)
}

/// The items of what is filtered; these filters take `None` for an empty list.
fn truthy(args: &Args<'_, '_, '_>) -> Result<Vec<Value>, Error> {
    match args.first()? {
        value if value.is_true() => items(args.state, &value),
        _ => Ok(Vec::new()),
    }
}

fn map(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let mut out = Vec::new();
    let attribute = args.get(usize::MAX, "attribute");
    for item in truthy(args)? {
        out.push(match &attribute {
            Some(name) => match path(&item, name)? {
                value if value.is_undefined() => {
                    args.get(usize::MAX, "default").unwrap_or(Value::UNDEFINED)
                }
                value => value,
            },
            None => {
                let filter =
                    args.text(1, "filter")?.ok_or_else(|| invalid("map needs a filter"))?;
                let mut passed = vec![item];
                passed.extend(args.all_but(2));
                args.state.apply_filter(&filter, &passed)?
            }
        });
    }
    Ok(Value::from(out))
}

fn select(args: &Args<'_, '_, '_>, wanted: bool, by_attribute: bool) -> Result<Value, Error> {
    let attribute = if by_attribute { Some(args.required(1, "attribute")?) } else { None };
    let test_at = 1 + usize::from(by_attribute);
    let test = args.text(test_at, "test")?;
    let mut out = Vec::new();
    for item in truthy(args)? {
        let value = attribute.as_ref().map_or(Ok(item.clone()), |name| path(&item, name))?;
        let passes = match &test {
            None => value.is_true(),
            Some(test) => {
                let mut passed = vec![value];
                passed.extend(args.all_but(test_at + 1));
                args.state.perform_test(test, &passed)?
            }
        };
        if passes == wanted {
            out.push(item);
        }
    }
    Ok(Value::from(out))
}

fn unique(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let attribute = args.get(2, "attribute").filter(|name| !name.is_none());
    let case_sensitive = args.is_true(1, "case_sensitive");
    let mut seen: Vec<Value> = Vec::new();
    let mut out = Vec::new();
    for item in items(args.state, &args.first()?)? {
        let mut key = attribute.as_ref().map_or(Ok(item.clone()), |name| path(&item, name))?;
        if let Some(text) = key.as_str().filter(|_| !case_sensitive) {
            key = Value::from(text.to_lowercase());
        }
        let mut found = false;
        for other in &seen {
            work::charge_value(args.state, other)?;
            found = found || same(args, other, &key)?;
        }
        if !found {
            seen.push(key);
            out.push(item);
        }
    }
    Ok(Value::from(out))
}
