//! What several tests share.
#![allow(dead_code)] // not every test uses all of it

pub(crate) mod stand_in;

use std::fs;
use std::path::{Path, PathBuf};

use hypura_gguf::{GgmlType, Metadata, StringArray, Writer, write_split};
use hypura_hub::Stores;

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

/// A model of two tensors and 25,856 weights; `seed` makes it another one.
pub(crate) fn writer(seed: u32) -> Writer {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama");
    metadata.insert("general.file_type", 15_u32);
    metadata.insert("llama.context_length", 4096_u32);
    metadata.insert("llama.embedding_length", 256_u32);
    metadata.insert("tokenizer.chat_template", "{{ messages }}");
    metadata
        .insert("tokenizer.ggml.tokens", StringArray::from_iter((0..100).map(|n| n.to_string())));
    metadata.insert("test.few", vec![1_u32, 2]);
    metadata.insert("test.infinite", f32::INFINITY);
    metadata.insert("test.seed", seed);
    let mut writer = Writer::new(metadata, 32).unwrap();
    writer.add_tensor("token_embd.weight", GgmlType::F32, &[256, 100]).unwrap();
    writer.add_tensor("output_norm.weight", GgmlType::F32, &[256]).unwrap();
    writer
}

/// The bytes of that model.
pub(crate) fn model(seed: u32) -> Vec<u8> {
    let (writer, mut bytes) = (writer(seed), Vec::new());
    writer.write(&mut bytes, |index, sink| sink.write_all(&weights(&writer, index, seed))).unwrap();
    bytes
}

/// The same as a split set of two files.
pub(crate) fn split_model(seed: u32) -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let writer = writer(seed);
    let data =
        |index, sink: &mut dyn std::io::Write| sink.write_all(&weights(&writer, index, seed));
    let paths = write_split(&writer, &folder.path().join("m"), &[1, 1], data).unwrap();
    [&paths[0], &paths[1]].map(|path| fs::read(path).unwrap())
}

fn weights(writer: &Writer, index: usize, seed: u32) -> Vec<u8> {
    let mut random = Random::new(u64::from(seed) << 8 | index as u64);
    (0..writer.tensors()[index].bytes).map(|_| random.next().to_le_bytes()[3]).collect()
}

pub(crate) fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Stores with nothing but Hypura's own folder.
pub(crate) fn own(folder: &Path) -> Stores {
    Stores { own: Some(folder.join("own")), ..Stores::default() }
}

/// All files below a folder, relative to it, but for the lock.
pub(crate) fn files_below(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("lock") {
                files.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}
