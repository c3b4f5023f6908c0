use llguidance::api::ParserLimits;

/// Bytes of a schema at most, written without spaces.
pub const SCHEMA_BYTES_MAX: usize = 256 << 10;
/// Values within values in a schema at most.
pub const SCHEMA_DEPTH_MAX: usize = 100;
/// JSON values in a schema at most.
pub const SCHEMA_NODES_MAX: usize = 20_000;
/// Values within values at most, if all references were followed one after the other.
pub const REFERENCE_REACH_MAX: usize = 4096;
/// Entries of `patternProperties` in a schema at most: each is compared with each other.
pub const PATTERN_PROPERTIES_MAX: usize = 8;
/// Bytes of a regular expression at most, as a rule or in a schema.
pub const PATTERN_BYTES_MAX: usize = 4096;
/// Bytes of a property's name at most.
pub const PROPERTY_NAME_BYTES_MAX: usize = 1024;
/// Bytes of a Lark grammar at most.
pub const LARK_BYTES_MAX: usize = 512 << 10;

/// Bytes of stack of the thread that compiles a rule. `llguidance` recurses into schemas; memory
/// that isn't reached is not taken.
pub(crate) const COMPILE_STACK_BYTES: usize = 64 << 20;

/// What `llguidance` may spend. Its own defaults where no reason is given.
pub(crate) fn parser_limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
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
