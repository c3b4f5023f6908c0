use llguidance::api::ParserLimits;

/// Bytes of names and texts in a schema at most; descriptions don't count.
pub const SCHEMA_TEXT_BYTES_MAX: usize = 256 << 10;
/// Schemas within schemas at most.
pub const SCHEMA_DEPTH_MAX: usize = 64;
/// Values in a schema at most; those that aren't enforced don't count.
pub const SCHEMA_NODES_MAX: usize = 20_000;
/// Schemas within schemas at most, if all references were followed one after the other.
pub const REFERENCE_REACH_MAX: usize = 1000;
/// Values at most, where keywords that meet in one schema are combined.
pub const COMBINED_NODES_MAX: usize = 200_000;
/// Patterns and formats that one text has to match at most.
pub const COMBINED_PATTERNS_MAX: usize = 4;
/// Properties of all objects in a schema at most.
pub const PROPERTIES_MAX: usize = 1000;
/// Properties in a schema with `minProperties` or `maxProperties` at most: each may be the one.
pub const CHOSEN_PROPERTIES_MAX: usize = 64;
/// Entries of `patternProperties` in a schema at most: each is compared with each other.
pub const PATTERN_PROPERTIES_MAX: usize = 8;
/// The common multiple of all `multipleOf` in a schema at most, in units of their last place.
pub const MULTIPLE_OF_MAX: usize = 10_000;
/// Bytes of a regular expression at most, as a rule or in a schema.
pub const PATTERN_BYTES_MAX: usize = 4096;
/// Bytes of a property's name at most.
pub const PROPERTY_NAME_BYTES_MAX: usize = 1024;
/// Bytes of a Lark grammar at most.
pub const LARK_BYTES_MAX: usize = 512 << 10;

/// What `llguidance` may spend. Its own defaults where no reason is given.
pub(crate) fn parser_limits() -> ParserLimits {
    ParserLimits {
        // An object with many properties, none of them required, has a few for each.
        max_items_in_row: 10_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // 1 to 2 kB each.
        max_lexer_states: 50_000,
        max_grammar_size: 500_000,
        precompute_large_lexemes: true,
        // The text so far is nobody's business who reads an error.
        verbose_errors: false,
    }
}
