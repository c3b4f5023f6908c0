//! Files that are no sound models: each is refused with a message that says what is wrong.

mod common;

use std::path::Path;

use common::{bare, file_bytes, small_model};
use hypura_gguf::{Model, read_header};

/// A header written by hand, so that it can say what no writer would.
struct Raw(Vec<u8>);

impl Raw {
    fn new(n_tensors: u64, n_entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_entries)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn string(self, string: &str) -> Self {
        self.u64(string.len() as u64).bytes(string.as_bytes())
    }

    /// An info of an F32 tensor of 8 elements, 32 bytes.
    fn tensor(self, name: &str, offset: u64) -> Self {
        self.string(name).u32(1).u64(8).u32(0).u64(offset)
    }

    fn zeros(mut self, n: usize) -> Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }
}

fn check(what: &str, bytes: &[u8], message: &str) {
    match read_header(bytes, bytes.len() as u64) {
        Ok(header) => panic!("{what}: read as {header:?}"),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(message), "{what}: {text:?} does not say {message:?}");
        }
    }
}

#[test]
fn refused_headers() {
    const U32: u32 = 4;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let one = || Raw::new(0, 1);
    let info = || Raw::new(1, 0);
    let huge = u64::MAX;
    let cases: Vec<(&str, Raw, &str)> = vec![
        ("empty", Raw(vec![]), "the file is empty"),
        ("short magic", Raw(b"GG".to_vec()), "ends inside the magic number, after 2 bytes"),
        ("ZIP", Raw(b"PK\x03\x04".to_vec()).zeros(60), "not a GGUF file"),
        ("big endian", Raw(b"GGUF\0\0\0\x03".to_vec()).zeros(16), "big-endian"),
        ("version 1", Raw(b"GGUF".to_vec()).u32(1).zeros(16), "version 1 is not supported"),
        ("version 4", Raw(b"GGUF".to_vec()).u32(4).zeros(16), "version 4 is not supported"),
        ("version 0", Raw(b"GGUF".to_vec()).zeros(20), "version 0 is not supported"),
        ("no counts", Raw(b"GGUF".to_vec()).u32(3), "ends inside the tensor count"),
        ("tensors without end", Raw::new(huge, 0), "the tensor count is 18446744073709551615"),
        ("many tensors", Raw::new(1000, 0), "ends inside the tensor count"),
        ("entries without end", Raw::new(0, huge), "the metadata count is"),
        ("many entries", Raw::new(0, 1000), "ends inside the metadata count"),
        ("empty key", one().string("").u32(U32).u32(1).zeros(8), "key number 0 is empty"),
        ("key not UTF-8", one().u64(1).bytes(&[0xff]).u32(U32).u32(1), "not UTF-8"),
        ("key without end", one().u64(huge).zeros(99), "a metadata key is"),
        ("long key", one().u64(1 << 15).zeros(99), "ends inside a metadata key"),
        ("unknown type", one().string("k").u32(13).u32(1), "unknown type 13"),
        ("value missing", one().string("k").u32(U32).zeros(3), "ends inside a metadata value"),
        ("string without end", one().string("k").u32(STRING).u64(huge), "a metadata string is"),
        ("long string", one().string("k").u32(STRING).u64(99).zeros(9), "a metadata string"),
        ("nested array", one().string("k").u32(ARRAY).u32(ARRAY).u64(0), "array of arrays"),
        ("array type", one().string("k").u32(ARRAY).u32(77).u64(0), "unknown type 77"),
        ("array without end", one().string("k").u32(ARRAY).u32(U32).u64(huge), "array of numbers"),
        ("long array", one().string("k").u32(ARRAY).u32(U32).u64(9).zeros(35), "array of numbers"),
        ("many strings", one().string("k").u32(ARRAY).u32(STRING).u64(9).zeros(71), "of strings"),
        (
            "array of long strings",
            one().string("k").u32(ARRAY).u32(STRING).u64(1).u64(50).zeros(49),
            "ends inside an array of strings",
        ),
        (
            "key twice",
            Raw::new(0, 2).string("k").u32(U32).u32(1).string("k").u32(U32).u32(1),
            "key \"k\" occurs twice",
        ),
        (
            "odd alignment",
            one().string("general.alignment").u32(U32).u32(24),
            "power of two up to 16777216, but is 24",
        ),
        ("no alignment", one().string("general.alignment").u32(U32).u32(0), "but is 0"),
        ("huge alignment", one().string("general.alignment").u32(U32).u32(1 << 31), "power of two"),
        (
            "alignment of another type",
            one().string("general.alignment").u32(STRING).string("32"),
            "but is no number",
        ),
        ("name not UTF-8", info().u64(1).bytes(&[0xff]).zeros(40), "tensor number 0 is not UTF-8"),
        ("long name", info().tensor(&"n".repeat(64), 0).zeros(64), "longer than the 63 bytes"),
        ("five dimensions", info().string("t").u32(5).zeros(64), "has 5 dimensions"),
        ("dimensions without end", info().string("t").u32(u32::MAX).zeros(64), "dimensions"),
        (
            "removed type",
            info().string("t").u32(1).u64(32).u32(31).u64(0),
            "tensor type Q4_0_4_4 (id 31) was removed from ggml; use the Q4_0 file",
        ),
        ("unknown tensor type", info().string("t").u32(1).u64(32).u32(99).u64(0), "type id 99"),
        ("part of a block", info().string("t").u32(1).u64(33).u32(2).u64(0), "whole blocks of 32"),
        (
            "too many elements",
            info().string("t").u32(2).u64(1 << 40).u64(1 << 40).u32(0).u64(0),
            "can't have the shape [1099511627776, 1099511627776, 1, 1]",
        ),
        ("bytes beyond 64 bits", info().string("t").u32(1).u64(huge).u32(0).u64(0), "the shape"),
        (
            "no offset",
            info().string("t").u32(1).u64(8).u32(0).zeros(7),
            "ends inside a tensor info",
        ),
        ("no padding", info().tensor("t", 0), "the padding after the header"),
        ("no data", info().tensor("t", 0).zeros(7), "ends at byte 96, but the file at 64"),
        ("data short by a byte", info().tensor("t", 0).zeros(7 + 31), "but the file at 95"),
        ("misaligned", info().tensor("t", 8).zeros(99), "starts at 8"),
        ("offset beyond the end", info().tensor("t", 1 << 40).zeros(99), "download is incomplete"),
        (
            "offset beyond 64 bits",
            info().tensor("t", huge - 31).zeros(99),
            "download is incomplete",
        ),
        (
            "name twice",
            Raw::new(2, 0).tensor("t", 0).tensor("t", 32).zeros(99),
            "tensor \"t\" occurs twice",
        ),
        (
            "same place",
            Raw::new(2, 0).tensor("t", 0).tensor("u", 0).zeros(99),
            "tensors \"t\" and \"u\" overlap",
        ),
        (
            "overlapping",
            Raw::new(2, 0).tensor("t", 32).string("u").u32(1).u64(9).u32(0).u64(0).zeros(199),
            "tensors \"u\" and \"t\" overlap",
        ),
    ];
    for (what, raw, message) in cases {
        check(what, &raw.0, message);
    }
}

#[test]
fn every_shortened_file_is_refused() {
    let bytes = file_bytes(&small_model(bare(), 32));
    assert!(read_header(bytes.as_slice(), bytes.len() as u64).is_ok());
    // The padding behind the last tensor may be missing; a byte of the tensor may not.
    let data_end = bytes.iter().rposition(|&byte| byte != 0).expect("data are not zero") + 1;
    for len in (0..data_end).rev() {
        let short = &bytes[..len];
        assert!(read_header(short, len as u64).is_err(), "{len} of {data_end} bytes");
    }
    assert!(read_header(&bytes[..data_end], data_end as u64).is_ok());
}

#[test]
fn a_source_shorter_than_promised_is_refused() {
    let bytes = file_bytes(&small_model(bare(), 32));
    let error = read_header(&bytes[..100], bytes.len() as u64).expect_err("it is cut off");
    assert!(error.to_string().contains("the file ends inside"), "{error}");
}

#[test]
fn paths_that_are_no_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let check = |path: &Path, message: &str| {
        let text = Model::open(path).expect_err(message).to_string();
        assert!(text.contains(message), "{text:?} does not say {message:?}");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(text.contains(name), "{text:?} does not name the file");
    };
    check(&folder.path().join("missing.gguf"), "there is no file");
    check(folder.path(), "is a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a small file");
        path
    };
    check(&file("empty.gguf", b""), "the file is empty");
    check(&file("text.gguf", b"version https://git-lfs"), "not a GGUF file (it starts with \"vers");
    check(&file("bare.gguf", &Raw::new(0, 0).0), "names no architecture");
    let cut = file_bytes(&small_model(bare(), 32));
    check(&file("cut.gguf", &cut[..cut.len() - 200]), "the download is incomplete");
    #[cfg(target_os = "linux")]
    check(Path::new("/dev/null"), "no regular file");
}
