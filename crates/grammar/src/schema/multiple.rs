use serde_json::Value;

use crate::error::ConstraintError;
use crate::limits::MULTIPLE_OF_MAX;
use crate::schema::over;

/// Decimal places of a `multipleOf` at most.
const PLACES_MAX: usize = 6;

/// A common multiple of all `multipleOf` of a schema: combined, they ask for multiples of that. The
/// automaton that divides by n has n states.
#[derive(Debug)]
pub(super) struct CommonMultiple {
    /// In units of the last of [`PLACES_MAX`] places.
    units: u64,
    /// The most places that any number had.
    places: usize,
}

impl CommonMultiple {
    pub(super) fn new() -> Self {
        Self { units: 1, places: 0 }
    }

    pub(super) fn add(&mut self, value: &Value) -> Result<(), ConstraintError> {
        let number = value
            .as_f64()
            .filter(|number| *number != 0.0)
            .ok_or_else(|| ConstraintError::invalid("\"multipleOf\" is a number above 0"))?;
        let text = number.abs().to_string();
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let too_large = || over(MULTIPLE_OF_MAX, "as the common multiple of all \"multipleOf\"");
        if fraction.len() > PLACES_MAX {
            return Err(over(PLACES_MAX, "decimal places in \"multipleOf\""));
        }
        let units = format!("{whole}{fraction:0<PLACES_MAX$}").parse().map_err(|_| too_large())?;
        self.places = self.places.max(fraction.len());
        self.units = (self.units / greatest_common_divisor(self.units, units))
            .checked_mul(units)
            .ok_or_else(too_large)?;
        let unused = PLACES_MAX - self.places;
        let largest = (MULTIPLE_OF_MAX as u64)
            .saturating_mul(10_u64.saturating_pow(u32::try_from(unused).unwrap_or(u32::MAX)));
        if self.units > largest { Err(too_large()) } else { Ok(()) }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_what_all_numbers_have_in_common() {
        let check = |numbers: Value, fits: bool| {
            let mut multiple = CommonMultiple::new();
            let numbers = numbers.as_array().expect("a list");
            let result = numbers.iter().try_for_each(|number| multiple.add(number));
            assert_eq!(result.is_ok(), fits, "{numbers:?}");
        };
        check(json!([1, 0.01, 0.5, 10, 60]), true);
        check(json!([10_000]), true);
        check(json!([10_001]), false);
        check(json!([-5]), true);
        check(json!([97, 101]), true);
        check(json!([97, 101, 103]), false);
        check(json!([0.000001]), true);
        check(json!([0.0000001]), false);
        check(json!([1, 0.0001]), true);
        check(json!([3, 0.0001]), false);
        check(json!([1e300]), false);
        check(json!([0]), false);
        check(json!(["1"]), false);
    }
}
