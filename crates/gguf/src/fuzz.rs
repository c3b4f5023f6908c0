//! Bodies of fuzz tests: given any bytes, they must neither panic, hang, nor take memory out of
//! proportion. `fuzz/` runs them under cargo-fuzz, `tests/fuzz.rs` on mutated files in every build.

use crate::hot::{HOT_ALIGNMENT, HotModel, check_places};
use crate::hparams::Hparams;
use crate::metadata::Metadata;
use crate::model::{Model, ModelFile};
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

/// Reads `data` as the header of a hot file, without its checksum, which would refuse every change:
/// what passes the other checks must lie within the file, aligned and apart.
///
/// # Panics
/// If something lies elsewhere.
pub fn fuzz_hot(data: &[u8]) {
    let len = data.len() as u64;
    let Ok(header) = read_header(data, len) else {
        return;
    };
    let (data_offset, alignment) = (header.data_offset, header.alignment);
    let file = ModelFile { path: "fuzzed".into(), len, data_offset, alignment };
    let Ok(model) = Model::join(vec![(file, header)]) else {
        return;
    };
    let _ = HotModel::of(&model);
    if let Ok(hot) = check_places(&model) {
        check_hot(&hot, len);
    }
}

fn check_hot(hot: &HotModel, len: u64) {
    let alignment = u64::from(HOT_ALIGNMENT);
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for (index, tensor) in hot.view.tensors.iter().enumerate() {
        assert_eq!(hot.view.tensor(&tensor.name), Some(tensor));
        let Some(place) = hot.place(index) else {
            spans.push((tensor.offset, tensor.bytes));
            continue;
        };
        assert_eq!(u64::from(place.n_slices) * place.slice_bytes, tensor.bytes);
        assert_eq!(place.slice(place.n_slices), None);
        // Of many slices the first and the last say what there is to say.
        let last = place.n_slices.checked_sub(1);
        let mut slices = vec![place.slice(0), last.and_then(|last| place.slice(last))];
        slices.dedup();
        for slice in slices {
            let Some(slice) = slice else { panic!("{} has no slices", tensor.name) };
            assert_eq!(slice.offset % alignment, 0, "{}", tensor.name);
            spans.push((slice.offset, slice.len.next_multiple_of(alignment)));
        }
    }
    spans.sort_unstable();
    spans.retain(|&(_, bytes)| bytes > 0);
    for (&(offset, bytes), next) in spans.iter().zip(spans.iter().skip(1).chain([&(len, 0)])) {
        assert!(offset + bytes <= next.0, "{offset} + {bytes} reaches beyond {}", next.0);
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
