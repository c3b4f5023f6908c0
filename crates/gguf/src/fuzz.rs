//! Bodies of fuzz tests: given any bytes, they must neither panic, hang, nor take memory out of
//! proportion. `fuzz/` runs them under cargo-fuzz, `tests/fuzz.rs` on mutated files in every build.

use crate::hparams::Hparams;
use crate::metadata::Metadata;
use crate::read::{Header, read_header};
use crate::role::Role;
use crate::write::Writer;

/// Reads `data` as a header; whatever is read is written again and must read the same.
///
/// # Panics
/// If a header that was read does not survive being written.
pub fn fuzz_header(data: &[u8]) {
    let Ok(header) = read_header(data, data.len() as u64) else {
        return;
    };
    check_rewritten(&header);
    // Nothing may trip over the metadata of a model that makes no sense.
    let hparams = Hparams::read(&header.metadata, None);
    for layer in 0..hparams.n_layer {
        let _ = (hparams.key_row_elements(layer), hparams.value_row_elements(layer));
    }
    for (_, value) in header.metadata.iter() {
        let _ = value.to_string();
    }
}

/// Reads `data` as the metadata of a model: `key=number` lines, so that a fuzzer finds keys quickly.
pub fn fuzz_hparams(data: &[u8]) {
    let mut metadata = Metadata::new();
    for line in String::from_utf8_lossy(data).lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let numbers: Vec<u32> = value.split(',').filter_map(|v| v.parse().ok()).collect();
        match numbers.as_slice() {
            [] => metadata.insert(key, value),
            [number] => metadata.insert(key, *number),
            _ => metadata.insert(key, numbers),
        };
        let _ = Role::of(key);
    }
    let hparams = Hparams::read(&metadata, None);
    for layer in 0..=hparams.n_layer {
        let _ = (hparams.key_row_elements(layer), hparams.value_row_elements(layer));
    }
}

/// Writes a header with its tensors packed, reads that and writes it once more: the bytes must be the
/// same. (Bytes, because a NaN is equal to nothing.)
fn check_rewritten(header: &Header) {
    // A large alignment pads a small header to megabytes; that was asked for, but tests nothing.
    if header.alignment > 1 << 16 {
        return;
    }
    let writer = rewrite(header);
    let bytes = writer.header();
    let file_len = bytes.len() as u64 + writer.data_bytes();
    match read_header(bytes.as_slice(), file_len) {
        Ok(again) => assert_eq!(rewrite(&again).header(), bytes),
        Err(err) => panic!("a header that was written can't be read: {err}"),
    }
}

fn rewrite(header: &Header) -> Writer {
    let mut writer = match Writer::new(header.metadata.clone(), header.alignment) {
        Ok(writer) => writer,
        Err(err) => panic!("a header that was read can't be written: {err}"),
    };
    for info in &header.tensors {
        let n_dims = usize::try_from(info.n_dims).unwrap_or_default();
        let dims = info.dims.get(..n_dims).unwrap_or_default();
        if let Err(err) = writer.add_tensor(&info.name, info.ty, dims) {
            panic!("a tensor that was read can't be written: {err}");
        }
    }
    writer
}
