#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypura_server::fuzz::fuzz_ollama(data));
