#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypura_kv::fuzz_session(data));
