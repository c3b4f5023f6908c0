//! A short file can't take much memory, whatever it says of itself. Alone in its process, because it
//! looks at the address space of all of it.
#![cfg(target_os = "linux")]

use std::io::{self, Read};

use hypura_gguf::read_header;

/// Bytes of the header, then an error: a source that ends although its file was said to be long.
struct Short<'a>(&'a [u8]);

impl Read for Short<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

#[test]
fn a_short_source_takes_little_memory() {
    let header = |n_tensors: u64, n_entries: u64, rest: &[&[u8]]| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_entries.to_le_bytes());
        rest.iter().for_each(|part| bytes.extend(*part));
        bytes
    };
    let key = [&1_u64.to_le_bytes()[..], b"k"].concat();
    let array = 9_u32.to_le_bytes();
    let limit = (48_u64 << 20).to_le_bytes(); // below every limit for strings and arrays
    let element = |id: u32| [&key[..], &array, &id.to_le_bytes(), &limit].concat();
    let cases = [
        header(1 << 20, 0, &[]),
        header(0, 1 << 16, &[]),
        header(0, 1, &[&limit]),
        header(0, 1, &[&key, &8_u32.to_le_bytes(), &limit]),
        header(0, 1, &[&element(0)]),
        header(0, 1, &[&element(4)]),
        header(0, 1, &[&element(8)]),
        header(1, 0, &[&limit]),
    ];
    // Once, so that what the first call sets up is not counted.
    let _ = read_header(Short(&cases[0]), 1 << 40);
    // What was mapped and given back before (allocators do) would hide as much of what comes now.
    let hidden = status_bytes("VmPeak:") - status_bytes("VmSize:");
    let ballast = Vec::<u8>::with_capacity(usize::try_from(hidden).expect("it fit before"));
    std::hint::black_box(&ballast);
    let before = status_bytes("VmPeak:");
    for bytes in &cases {
        assert!(bytes.len() <= 100);
        assert!(read_header(Short(bytes), 1 << 40).is_err());
    }
    let grown = status_bytes("VmPeak:") - before;
    assert!(grown < 4 << 20, "{grown} bytes for headers of 100 bytes");
}

/// A size of this process's address space: unlike resident memory, it counts what was reserved and
/// never touched.
fn status_bytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("so has status");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
    kib * 1024
}
