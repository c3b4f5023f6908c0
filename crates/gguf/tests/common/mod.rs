//! What several tests share.
#![allow(dead_code)] // not every test uses all of it

use std::io::{self, Write};

use hypura_gguf::{GgmlType, Metadata, StringArray, Value, Writer};

/// Deterministic numbers (xorshift64*, Vigna 2016).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }
}

/// Metadata with a value of every type.
pub(crate) fn every_value() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "test");
    metadata.insert("u8", u8::MAX);
    metadata.insert("i8", i8::MIN);
    metadata.insert("u16", u16::MAX);
    metadata.insert("i16", i16::MIN);
    metadata.insert("u32", u32::MAX);
    metadata.insert("i32", i32::MIN);
    metadata.insert("f32", 1.5_f32);
    metadata.insert("bool", true);
    metadata.insert("string", "an \"umlaut\": ü");
    metadata.insert("bytes", Value::String(vec![0xff, 0, 0xfe]));
    metadata.insert("empty", "");
    metadata.insert("u64", u64::MAX);
    metadata.insert("i64", i64::MIN);
    metadata.insert("f64", -0.25_f64);
    metadata.insert("array.u8", vec![0_u8, 255]);
    metadata.insert("array.i8", vec![-1_i8]);
    metadata.insert("array.u16", vec![1_u16, 2, 3]);
    metadata.insert("array.i16", vec![-300_i16]);
    metadata.insert("array.u32", (0..1000_u32).collect::<Vec<_>>());
    metadata.insert("array.i32", Vec::<i32>::new());
    metadata.insert("array.f32", vec![0.5_f32; 3]);
    metadata.insert("array.bool", vec![true, false, true]);
    metadata.insert("array.string", StringArray::from_iter(["a", "", "third"]));
    metadata.insert("array.u64", vec![u64::MAX]);
    metadata.insert("array.i64", vec![i64::MIN]);
    metadata.insert("array.f64", vec![1e300_f64]);
    metadata
}

/// Metadata of a model with nothing but an architecture.
pub(crate) fn bare() -> Metadata {
    [("general.architecture", "test")].into_iter().collect()
}

/// A small model of a dense layer and a layer of experts.
pub(crate) fn small_model(metadata: Metadata, alignment: u32) -> Writer {
    let mut writer = Writer::new(metadata, alignment).expect("a valid alignment");
    for (name, ty, dims) in [
        ("token_embd.weight", GgmlType::Q8_0, &[32, 10][..]),
        ("blk.0.ffn_up.weight", GgmlType::F16, &[32, 5]),
        ("blk.1.ffn_up_exps.weight", GgmlType::Q4_K, &[256, 3, 4]),
        ("blk.1.ffn_up_exps.bias", GgmlType::F32, &[3, 4]),
        ("output_norm.weight", GgmlType::F32, &[33]),
    ] {
        writer.add_tensor(name, ty, dims).expect(name);
    }
    writer
}

/// Data that tell which tensor they belong to.
pub(crate) fn fill(writer: &Writer) -> impl FnMut(usize, &mut dyn Write) -> io::Result<()> {
    let sizes: Vec<u64> = writer.tensors().iter().map(|info| info.bytes).collect();
    move |index, sink| {
        let size = usize::try_from(sizes[index]).expect("small");
        sink.write_all(&vec![u8::try_from(index).expect("few") + 1; size])
    }
}

/// The bytes of a whole file.
pub(crate) fn file_bytes(writer: &Writer) -> Vec<u8> {
    let mut bytes = Vec::new();
    writer.write(&mut bytes, fill(writer)).expect("writing to memory");
    bytes
}
