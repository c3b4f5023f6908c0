#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypura_hub::fuzz::fuzz_manifest(data));
