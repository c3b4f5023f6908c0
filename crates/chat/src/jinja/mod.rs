//! Jinja2 as Hugging Face's `apply_chat_template` runs it.
//!
//! A template is written for Python: Jinja2's immutable sandbox with trimmed blocks and loop
//! controls. Here it is translated (`lexer.rs`, `expression.rs`, `statement.rs`) into one for
//! minijinja that calls functions with Python's meaning (`operators.rs`, `methods.rs`,
//! `filters.rs`, `checks.rs`) and is bounded in all it does (`work.rs`).
//!
//! What differs still: `safe` and `escape` make texts like any other, where Python goes on to escape
//! what is added to them; what filters give is a list, where Python has a generator, which is
//! always true and no JSON; a tuple is a list and is written as one; a number beyond 128 bits is an
//! error; `varargs` and `kwargs` are unknown in macros; there is no `include`, `import`, `block` or
//! `autoescape`; of the filters, `batch`, `filesizeformat`, `pprint`, `random`, `slice`,
//! `striptags`, `truncate`, `urlencode`, `urlize`, `wordwrap` and `xmlattr` are missing.

mod args;
mod checks;
mod expression;
mod filters;
mod formats;
mod json;
mod lexer;
mod methods;
mod operators;
mod python;
mod statement;
mod work;

use args::Args;
use chrono::{DateTime, FixedOffset};
use minijinja::value::Rest;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Bytes of a template's source at most. The longest public ones have 30 KiB.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a prompt at most: more than any context holds.
pub const PROMPT_BYTES_MAX: usize = 64 << 20;
/// How deep macros, loops and scopes may be nested; a macro counts 4.
const RECURSION_MAX: usize = 200;

const NAME: &str = "chat";
const NOW: &str = "__now";

/// A template that is ready to be rendered.
pub(crate) struct Jinja {
    environment: Environment<'static>,
}

impl Jinja {
    /// Compiles a template.
    pub(crate) fn new(source: &str) -> Result<Jinja, Error> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(syntax_error(format!("it is longer than {TEMPLATE_BYTES_MAX} bytes")));
        }
        let mut environment = Environment::empty();
        environment.set_keep_trailing_newline(true);
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(|out, state, value| {
            let text = python::text(state, value)?;
            out.write_str(&text).map_err(Error::from)
        });
        operators::register(&mut environment);
        filters::register(&mut environment);
        checks::register(&mut environment);
        globals(&mut environment);
        environment.add_template_owned(NAME, statement::translate(source)?)?;
        Ok(Jinja { environment })
    }

    /// Renders with these names; `input_bytes` is about how much they hold.
    pub(crate) fn render(
        &self,
        names: impl IntoIterator<Item = (String, Value)>,
        input_bytes: usize,
        now: DateTime<FixedOffset>,
    ) -> Result<String, Error> {
        let (limit, bytes) = work::limit(input_bytes);
        let own = [(limit.to_owned(), bytes), (NOW.to_owned(), Value::from(now.to_rfc3339()))];
        let context: Value = names.into_iter().chain(own).collect();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(work::fuel(input_bytes)));
        let text = environment.get_template(NAME)?.render(context)?;
        match text.len() <= PROMPT_BYTES_MAX {
            true => Ok(text),
            false => Err(operators::invalid("the prompt is too long")),
        }
    }
}

fn syntax_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::SyntaxError, message.into())
}

fn globals(environment: &mut Environment<'static>) {
    environment.add_test("defined", minijinja::tests::is_defined);
    environment.add_test("undefined", minijinja::tests::is_undefined);
    environment.add_test("none", minijinja::tests::is_none);
    environment.add_test("filter", minijinja::tests::is_filter);
    environment.add_test("test", minijinja::tests::is_test);
    for (test, function) in [
        ("lt", "<"),
        ("lessthan", "<"),
        ("le", "<="),
        ("gt", ">"),
        ("greaterthan", ">"),
        ("ge", ">="),
    ] {
        for name in [test, function] {
            let is: fn(&Value, &Value) -> bool = match function {
                "<" => minijinja::tests::is_lt,
                "<=" => minijinja::tests::is_le,
                ">" => minijinja::tests::is_gt,
                _ => minijinja::tests::is_ge,
            };
            environment.add_test(name, move |a: &Value, b: &Value| is(a, b));
        }
    }
    environment.add_function("range", minijinja::functions::range);
    environment.add_function("dict", minijinja::functions::dict);
    environment.add_function("namespace", minijinja::functions::namespace);
    add_function(environment, "raise_exception", |args| {
        Err(operators::invalid(&*args.first_text()?))
    });
    add_function(environment, "strftime_now", |args| {
        let now = args.state.lookup(NOW).and_then(|now| now.to_str());
        let now = now.and_then(|now| DateTime::parse_from_rfc3339(&now).ok());
        let now = now.ok_or_else(|| operators::invalid("the time is not known"))?;
        Ok(Value::from(formats::time(now, &args.first_text()?)))
    });
}

fn add_function(
    environment: &mut Environment<'static>,
    name: &'static str,
    function: impl Fn(&Args<'_, '_, '_>) -> Result<Value, Error> + Send + Sync + 'static,
) {
    environment.add_function(name, move |state: &State<'_, '_>, values: Rest<Value>| {
        function(&Args::new(state, values)?)
    });
}

fn add_filter(
    environment: &mut Environment<'static>,
    name: &'static str,
    filter: impl Fn(&Args<'_, '_, '_>) -> Result<Value, Error> + Send + Sync + 'static,
) {
    environment.add_filter(name, move |state: &State<'_, '_>, values: Rest<Value>| {
        filter(&Args::new(state, values)?)
    });
}

fn add_test(
    environment: &mut Environment<'static>,
    name: &'static str,
    test: impl Fn(&Args<'_, '_, '_>) -> Result<bool, Error> + Send + Sync + 'static,
) {
    environment.add_test(name, move |state: &State<'_, '_>, values: Rest<Value>| {
        test(&Args::new(state, values)?)
    });
}
