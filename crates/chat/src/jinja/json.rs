//! `tojson` as Hugging Face's templates know it: Python's `json.dumps` with `ensure_ascii=False`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::args::Args;
use super::python;
use super::work::{self, NESTING_MAX};

/// Spaces per level at most.
const INDENT_MAX: usize = 100;

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(args: &Args<'_, '_, '_>) -> Result<Value, Error> {
    let indent = match args.get(2, "indent") {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = usize::try_from(i64::try_from(value)?).unwrap_or(0);
                " ".repeat(width.min(INDENT_MAX + 1))
            }
        }),
    };
    if indent.as_ref().is_some_and(|indent| indent.len() > INDENT_MAX) {
        return Err(Error::new(ErrorKind::InvalidOperation, "the indent is too wide"));
    }
    let separator = |at: usize| {
        let pair = args.get(3, "separators").filter(|pair| !pair.is_none())?;
        pair.get_item_by_index(at).ok()?.to_str().map(|text| text.to_string())
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let mut writer = Writer {
        state: args.state,
        ascii: args.is_true(1, "ensure_ascii"),
        comma: separator(0).unwrap_or_else(|| comma.to_owned()),
        colon: separator(1).unwrap_or_else(|| ": ".to_owned()),
        sorted: args.is_true(4, "sort_keys"),
        indent,
        out: String::new(),
    };
    writer.value(&args.first()?, 0)?;
    Ok(Value::from(writer.out))
}

struct Writer<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    ascii: bool,
    sorted: bool,
    comma: String,
    colon: String,
    indent: Option<String>,
    out: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > NESTING_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "values are nested too deep"));
        }
        work::charge_value(self.state, value)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', &items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.items('{', '}', &keys, depth, |writer, key| {
                    match key.as_str() {
                        Some(text) => writer.text(text),
                        None => {
                            writer.out.push('"');
                            writer.value(key, depth + 1)?;
                            writer.out.push('"');
                        }
                    }
                    writer.out.push_str(&writer.colon);
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("{kind} can't be written as JSON"),
                ));
            }
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.comma);
            }
            self.line(depth + 1)?;
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            work::charge(self.state, indent.len() * depth)?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                c if u32::from(c) < 0x20 => self.unit(u32::from(c)),
                c if self.ascii && u32::from(c) > 0x7e => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        self.unit(u32::from(*unit));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn unit(&mut self, unit: u32) {
        self.out.push_str(&format!("\\u{unit:04x}"));
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    Ok(match number {
        n if n.is_nan() => "NaN".to_owned(),
        n if n.is_infinite() => if n > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        n => python::float(n),
    })
}
