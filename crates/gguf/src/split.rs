//! Split sets: names of their files, and writing them.
//!
//! llama.cpp names file `no` (from 0) of `count` `PREFIX-00001-of-00003.gguf` (`llama_split_path`),
//! and stores `split.no`, `split.count` and `split.tensors.count` in each. The first file holds all
//! other metadata.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::write::{WriteError, Writer};

pub(crate) const KEY_SPLIT_NO: &str = "split.no";
pub(crate) const KEY_SPLIT_COUNT: &str = "split.count";
pub(crate) const KEY_SPLIT_TENSORS: &str = "split.tensors.count";

/// Whether a metadata key describes a split and not the model.
pub(crate) fn is_split_key(key: &str) -> bool {
    key.starts_with("split.")
}

/// The name of one file of a split set, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SplitName {
    /// The path up to the hyphen before the number.
    pub prefix: PathBuf,
    /// Which file, from 0.
    pub no: u32,
    /// How many files.
    pub count: u32,
}

impl SplitName {
    /// Takes a path such as `dir/model-00002-of-00003.gguf` apart; `None` if it is none of these.
    #[must_use]
    pub fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, part) = rest.rsplit_once('-')?;
        let (part, count) = (part.parse::<u32>().ok()?, count.parse::<u32>().ok()?);
        let no = part.checked_sub(1).filter(|&no| no < count)?;
        // Only the exact spelling leads back to the same name.
        let is_exact = !prefix.is_empty() && name.ends_with(&Self::suffix(no, count));
        is_exact.then(|| Self { prefix: path.with_file_name(prefix), no, count })
    }

    /// The path of another file of the same set.
    #[must_use]
    pub fn path_of(&self, no: u32) -> PathBuf {
        split_path(&self.prefix, no, self.count)
    }

    /// What the name of file `no` (from 0) of `count` ends in.
    #[must_use]
    pub fn suffix(no: u32, count: u32) -> String {
        format!("-{:05}-of-{count:05}.gguf", u64::from(no) + 1)
    }
}

/// The path of file `no` (from 0) of a set of `count`.
#[must_use]
pub fn split_path(prefix: &Path, no: u32, count: u32) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(SplitName::suffix(no, count));
    path.into()
}

/// Writes a model as a split set and returns the paths.
///
/// `n_tensors_each` says how many tensors, in order, each file gets; it may be 0 for the first,
/// which then holds metadata only. `data` is called as by [`Writer::write`], with the index of the
/// tensor in the whole model.
///
/// # Errors
/// If the numbers don't add up to the writer's tensors, and as [`Writer::write`]; files written
/// before the error stay.
pub fn write_split(
    writer: &Writer,
    prefix: &Path,
    n_tensors_each: &[usize],
    mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<Vec<PathBuf>, WriteError> {
    let total = writer.tensors().len();
    // llama.cpp reads the count and the numbers as u16.
    let count = u16::try_from(n_tensors_each.len()).unwrap_or(u16::MAX);
    if n_tensors_each.iter().sum::<usize>() != total || usize::from(count) != n_tensors_each.len() {
        return Err(WriteError::SplitPlan { tensors: total });
    }

    let (mut paths, mut start) = (Vec::new(), 0);
    for (no, &n_tensors) in (0..count).zip(n_tensors_each) {
        let mut part = writer.part(start..start + n_tensors, no == 0)?;
        part.metadata.insert(KEY_SPLIT_NO, no);
        part.metadata.insert(KEY_SPLIT_COUNT, count);
        part.metadata.insert(KEY_SPLIT_TENSORS, i32::try_from(total).unwrap_or(i32::MAX));
        let path = split_path(prefix, no.into(), count.into());
        let mut out = BufWriter::new(File::create(&path)?);
        part.write(&mut out, |index, sink| data(start + index, sink))?;
        out.flush()?;
        paths.push(path);
        start += n_tensors;
    }
    Ok(paths)
}
