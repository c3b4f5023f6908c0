#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypura_chat::fuzz_parser(data));
