//! The methods of Python's texts, dictionaries and lists.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::args::{Args, items};
use super::lexer::is_space;
use super::operators::{invalid, same};
use super::{formats, python, work};

/// `value.name(arguments)`: the arguments are the value, the name and what is passed.
pub(super) fn call(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let value = args.first()?;
    let name = args.required(1, "name")?;
    let name = name.as_str().unwrap_or_default();
    let mut passed = vec![value.clone()];
    passed.extend(args.all_but(2));
    let own = Args::new(args.state, minijinja::value::Rest(passed))?;
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::String => text(&own, value.as_str().unwrap_or_default(), name),
        ValueKind::Map => dict(&own, &value, name),
        ValueKind::Seq | ValueKind::Iterable => list(&own, &value, name),
        _ => value.call_method(args.state, name, &args.all_but(2)),
    }
}

fn unknown(kind: &str, name: &str) -> Error {
    Error::new(ErrorKind::UnknownMethod, format!("{kind} has no method {name:?}"))
}

/// A method of `str`; the text itself is the first of `args`.
pub(super) fn text(args: &Args<'_, '_, '_>, text: &str, name: &str) -> Result<Value, Error> {
    let chars = |at| args.text(at, "chars");
    let all = |is: fn(char) -> bool| Value::from(!text.is_empty() && text.chars().all(is));
    Ok(match name {
        "upper" => text.to_uppercase().into(),
        "lower" | "casefold" => text.to_lowercase().into(),
        "capitalize" => capitalize(text).into(),
        "title" => title(text).into(),
        "swapcase" => text
            .chars()
            .map(|c| {
                if c.is_uppercase() {
                    c.to_lowercase().to_string()
                } else {
                    c.to_uppercase().to_string()
                }
            })
            .collect::<String>()
            .into(),
        "strip" => match chars(1)? {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).into(),
            None => text.trim_matches(is_space).into(),
        },
        "lstrip" => match chars(1)? {
            Some(chars) => text.trim_start_matches(|c| chars.contains(c)).into(),
            None => text.trim_start_matches(is_space).into(),
        },
        "rstrip" => match chars(1)? {
            Some(chars) => text.trim_end_matches(|c| chars.contains(c)).into(),
            None => text.trim_end_matches(is_space).into(),
        },
        "removeprefix" => text.strip_prefix(&*needle(args, "prefix")?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(&*needle(args, "suffix")?).unwrap_or(text).into(),
        "startswith" => affix(args, |affix| text.starts_with(affix))?.into(),
        "endswith" => affix(args, |affix| text.ends_with(affix))?.into(),
        "replace" => replace(args, text)?.into(),
        "split" => split(args, text)?.into(),
        "rsplit" => rsplit(args, text)?.into(),
        "splitlines" => splitlines(text, args.is_true(1, "keepends")).into(),
        "partition" => {
            let separator = needle(args, "sep")?;
            let (a, b, c) = match text.split_once(&*separator) {
                Some((before, after)) => (before, &*separator, after),
                None => (text, "", ""),
            };
            vec![Value::from(a), Value::from(b), Value::from(c)].into()
        }
        "rpartition" => {
            let separator = needle(args, "sep")?;
            let (a, b, c) = match text.rsplit_once(&*separator) {
                Some((before, after)) => (before, &*separator, after),
                None => ("", "", text),
            };
            vec![Value::from(a), Value::from(b), Value::from(c)].into()
        }
        "join" => {
            let mut out = String::new();
            for (i, item) in items(args.state, &args.required(1, "iterable")?)?.iter().enumerate() {
                let item = item.as_str().ok_or_else(|| invalid("only texts can be joined"))?;
                work::charge(args.state, text.len() + item.len())?;
                out.push_str(if i > 0 { text } else { "" });
                out.push_str(item);
            }
            out.into()
        }
        "count" => text.matches(&*needle(args, "sub")?).count().into(),
        "find" => place(text, text.find(&*needle(args, "sub")?)),
        "rfind" => place(text, text.rfind(&*needle(args, "sub")?)),
        "index" => match text.find(&*needle(args, "sub")?) {
            None => return Err(invalid("the text was not found")),
            at => place(text, at),
        },
        "format" => formats::braces(args.state, text, &args.all_but(1))?.into(),
        "zfill" | "ljust" | "rjust" | "center" => justify(args, text, name)?.into(),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isdigit" | "isnumeric" | "isdecimal" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isascii" => text.is_ascii().into(),
        "islower" => cased(text, char::is_uppercase),
        "isupper" => cased(text, char::is_lowercase),
        _ => return Err(unknown("a text", name)),
    })
}

fn needle(args: &Args<'_, '_, '_>, name: &str) -> Result<std::sync::Arc<str>, Error> {
    args.text(1, name)?.ok_or_else(|| invalid(format!("the argument {name:?} is missing")))
}

fn cased(text: &str, wrong: fn(char) -> bool) -> Value {
    Value::from(!text.chars().any(wrong) && text.chars().any(char::is_alphabetic))
}

/// Places are counted in characters.
fn place(text: &str, at: Option<usize>) -> Value {
    let before = at.and_then(|at| text.get(..at));
    before.map_or(Value::from(-1), |before| Value::from(before.chars().count()))
}

fn affix(args: &Args<'_, '_, '_>, is: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let affix = args.required(1, "affix")?;
    if let Some(affix) = affix.as_str() {
        return Ok(is(affix));
    }
    if affix.kind() != ValueKind::Seq {
        return Err(invalid("the beginning or end to look for must be a text"));
    }
    Ok(items(args.state, &affix)?.iter().filter_map(Value::as_str).any(is))
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// `str.title`: every letter behind something that is no letter is a capital.
fn title(text: &str) -> String {
    let mut inside = false;
    let convert = |c: char| {
        let was_inside = std::mem::replace(&mut inside, c.is_alphabetic());
        if was_inside { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
    };
    text.chars().map(convert).collect()
}

fn replace(args: &Args<'_, '_, '_>, text: &str) -> Result<String, Error> {
    let old = python::text(args.state, &args.required(1, "old")?)?;
    let new = python::text(args.state, &args.required(2, "new")?)?;
    let count = args.integer(3, "count")?.and_then(|count| usize::try_from(count).ok());
    let count = count.unwrap_or(usize::MAX).min(text.matches(&*old).count());
    work::charge(args.state, count.saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(text.replacen(&old, &new, count))
}

fn split(args: &Args<'_, '_, '_>, text: &str) -> Result<Vec<Value>, Error> {
    let most = limit(args)?;
    let parts: Vec<Value> = match args.text(1, "sep")? {
        Some(separator) if separator.is_empty() => return Err(invalid("empty separator")),
        Some(separator) => text.splitn(most, &*separator).map(Value::from).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                let end = if parts.len() + 1 >= most { None } else { rest.find(is_space) };
                let (word, tail) = rest.split_at(end.unwrap_or(rest.len()));
                parts.push(Value::from(word));
                rest = tail.trim_start_matches(is_space);
            }
            parts
        }
    };
    work::charge(args.state, parts.len().saturating_mul(work::VALUE_BYTES))?;
    Ok(parts)
}

fn rsplit(args: &Args<'_, '_, '_>, text: &str) -> Result<Vec<Value>, Error> {
    let most = limit(args)?;
    let mut parts: Vec<Value> = match args.text(1, "sep")? {
        Some(separator) if separator.is_empty() => return Err(invalid("empty separator")),
        Some(separator) => text.rsplitn(most, &*separator).map(Value::from).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let blank = if parts.len() + 1 >= most { None } else { rest.rfind(is_space) };
                let after = |at: usize| {
                    at + rest.get(at..).and_then(|t| t.chars().next()).map_or(0, char::len_utf8)
                };
                let (head, word) = rest.split_at(blank.map_or(0, after));
                parts.push(Value::from(word));
                rest = head.trim_end_matches(is_space);
            }
            parts
        }
    };
    work::charge(args.state, parts.len().saturating_mul(work::VALUE_BYTES))?;
    parts.reverse();
    Ok(parts)
}

/// Parts at most: one more than the splits that are allowed.
fn limit(args: &Args<'_, '_, '_>) -> Result<usize, Error> {
    let splits = args.integer(2, "maxsplit")?.unwrap_or(-1);
    Ok(usize::try_from(splits).map_or(usize::MAX, |splits| splits.saturating_add(1)))
}

fn splitlines(text: &str, keep_ends: bool) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['\n', '\r', '\x0b', '\x0c', '\u{85}', '\u{2028}', '\u{2029}']);
        let (line, tail) = rest.split_at(end.unwrap_or(rest.len()));
        let ending = match tail.strip_prefix("\r\n") {
            Some(_) => 2,
            None => tail.chars().next().map_or(0, char::len_utf8),
        };
        let shown = if keep_ends { line.len() + ending } else { line.len() };
        lines.push(Value::from(rest.get(..shown).unwrap_or(line)));
        rest = tail.get(ending..).unwrap_or_default();
    }
    lines
}

fn justify(args: &Args<'_, '_, '_>, text: &str, name: &str) -> Result<String, Error> {
    let width = usize::try_from(args.integer(1, "width")?.unwrap_or(0)).unwrap_or(0);
    let fill = args.text(2, "fillchar")?;
    let fill = fill.as_deref().unwrap_or(if name == "zfill" { "0" } else { " " });
    work::charge(args.state, width.saturating_mul(fill.len()))?;
    let margin = width.saturating_sub(text.chars().count());
    Ok(match name {
        "ljust" => [text, &fill.repeat(margin)].concat(),
        "center" => {
            let left = margin / 2 + (margin & width & 1);
            [&fill.repeat(left), text, &fill.repeat(margin - left)].concat()
        }
        "zfill" => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            [text.strip_suffix(digits).unwrap_or_default(), &fill.repeat(margin), digits].concat()
        }
        _ => [&fill.repeat(margin), text].concat(),
    })
}

/// A method of `dict`. Those that change it are not there, as in Jinja2's immutable sandbox.
pub(super) fn dict(args: &Args<'_, '_, '_>, map: &Value, name: &str) -> Result<Value, Error> {
    let keys = items(args.state, map)?;
    Ok(match name {
        "keys" => keys.into(),
        "values" => keys.iter().map(|key| map.get_item(key)).collect::<Result<Vec<_>, _>>()?.into(),
        "items" => {
            let pair = |key: Value| Ok(Value::from(vec![key.clone(), map.get_item(&key)?]));
            keys.into_iter().map(pair).collect::<Result<Vec<_>, Error>>()?.into()
        }
        "get" => match map.get_item(&args.required(1, "key")?) {
            Ok(value) if !value.is_undefined() => value,
            _ => args.get(2, "default").unwrap_or(Value::from(())),
        },
        "copy" => map.clone(),
        _ => match map.get_attr(name) {
            Ok(function) if function.kind() == ValueKind::Plain => {
                function.call(args.state, &args.all_but(1))?
            }
            _ => return Err(unknown("a dictionary", name)),
        },
    })
}

fn list(args: &Args<'_, '_, '_>, list: &Value, name: &str) -> Result<Value, Error> {
    let wanted = || args.required(1, "value");
    let mut count = 0;
    let mut first = None;
    match name {
        "count" | "index" => {
            for (i, item) in items(args.state, list)?.iter().enumerate() {
                if same(args, item, &wanted()?)? {
                    count += 1;
                    first = first.or(Some(i));
                }
            }
        }
        "copy" => return Ok(list.clone()),
        _ => return Err(unknown("a list", name)),
    }
    match first {
        _ if name == "count" => Ok(Value::from(count)),
        Some(at) => Ok(Value::from(at)),
        None => Err(invalid("the value is not in the list")),
    }
}
