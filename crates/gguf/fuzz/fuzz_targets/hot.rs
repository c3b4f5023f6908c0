#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypura_gguf::fuzz::fuzz_hot(data));
