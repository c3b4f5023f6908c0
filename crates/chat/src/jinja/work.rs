//! What a rendering may cost.
//!
//! minijinja's fuel bounds the number of steps, not what a step makes: forty steps that double a
//! text would fill any memory, and comparing lists that hold themselves many times over never ends.
//! So everything that a step reads or makes is charged here.

use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Object, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Steps of minijinja's machine that any rendering may take.
const FUEL: u64 = 2_000_000;
/// Steps that it may take for each byte of input. Of 75 public templates the thirstiest take 5
/// million for 1000 messages, and go over all messages for each of them.
const FUEL_PER_INPUT_BYTE: u64 = 64;
/// Bytes that any rendering may make or look at.
const WORK_BYTES: usize = 32 << 20;
/// How many times it may go over its input. The same templates make 160 MB of 0.7 MB.
const INPUT_PASSES_MAX: usize = 1024;
/// What a value costs that is not text.
pub(super) const VALUE_BYTES: usize = 32;
/// How deep lists and dictionaries may be nested: walks over them recur.
pub(super) const NESTING_MAX: usize = 64;

const COUNTER: &str = "hypura.work";
const LIMIT: &str = "__work_bytes_max";

#[derive(Debug, Default)]
struct Counter(AtomicUsize);

impl Object for Counter {}

/// The name and value under which a rendering of `input_bytes` is told its limit.
pub(super) fn limit(input_bytes: usize) -> (&'static str, Value) {
    let limit = input_bytes.saturating_mul(INPUT_PASSES_MAX).saturating_add(WORK_BYTES);
    (LIMIT, Value::from(limit))
}

/// The steps that a rendering of `input_bytes` may take.
pub(super) fn fuel(input_bytes: usize) -> u64 {
    let input = u64::try_from(input_bytes).unwrap_or(u64::MAX);
    // More than `isize::MAX` would be none in minijinja.
    input.saturating_mul(FUEL_PER_INPUT_BYTE).saturating_add(FUEL).min(u64::MAX >> 2)
}

/// Counts `bytes` of work.
///
/// # Errors
/// When that is too much for one rendering.
pub(super) fn charge(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    let counter = state.get_or_set_temp_object(COUNTER, Counter::default);
    let before = counter.0.fetch_add(bytes.min(usize::MAX >> 2), Ordering::Relaxed);
    let limit = state.lookup(LIMIT).and_then(|value| value.as_usize()).unwrap_or(WORK_BYTES);
    match before.saturating_add(bytes) <= limit {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::OutOfFuel,
            "rendering takes too much work; is the template's loop endless?",
        )),
    }
}

/// Counts a look at `value`, not at what is in it.
pub(super) fn charge_value(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let items = |value: &Value| value.len().unwrap_or(0).saturating_mul(VALUE_BYTES);
    let bytes = match value.kind() {
        ValueKind::String | ValueKind::Bytes => value.as_str().map_or(0, str::len),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => items(value),
        _ => 0,
    };
    charge(state, bytes.saturating_add(VALUE_BYTES))
}

/// Counts a walk over all of `value`.
///
/// # Errors
/// Also when it is nested too deep.
pub(super) fn charge_tree(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    walk(state, value, 0)
}

fn walk(state: &State<'_, '_>, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > NESTING_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "values are nested too deep"));
    }
    charge_value(state, value)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                walk(state, &item, depth + 1)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                walk(state, &value.get_item(&key)?, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}
