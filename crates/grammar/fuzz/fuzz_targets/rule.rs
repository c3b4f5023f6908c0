#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypura_grammar::fuzz::fuzz_rule(data));
