//! Comparing a hot file with its checksums.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::HOT_ALIGNMENT;
use super::read::{HotError, HotModel};
use super::table::Checksum;
use crate::align_up;
use crate::model::OpenError;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 4 << 20;

/// Why a hot file is not what was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum VerifyError {
    #[error("{path:?} can't be read: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Hot(#[from] HotError),
    #[error("{path:?} is damaged at {name:?}; check the drive and make the file again")]
    Damaged { path: PathBuf, name: String },
    #[error("checking {path:?} was stopped")]
    Stopped { path: PathBuf },
}

impl HotModel {
    /// Reads all of the file, from the drive where the system lets us ask for that, and compares it
    /// with its checksums. `progress` is told how many bytes of how many are read, and answers
    /// whether to go on.
    ///
    /// # Errors
    /// The first part that differs, by the name of one of its tensors.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64) -> bool) -> Result<(), VerifyError> {
        let Some(file) = self.file() else { return Ok(()) };
        let io_error = |source| VerifyError::Io { path: file.path.clone(), source };
        let mut source = File::open(&file.path).map_err(io_error)?;
        forget_cached(&source);
        let sections = self.sections();
        let total = sections.iter().map(|section| section.len).sum();
        let mut buffer = vec![0; PIECE_BYTES];
        let mut done = 0;
        for Section { offset, len, checksum, tensor } in sections {
            source.seek(SeekFrom::Start(offset)).map_err(io_error)?;
            let mut hasher = blake3::Hasher::new();
            let mut left = len;
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
                let piece = buffer.get_mut(..wanted).unwrap_or_default();
                source.read_exact(piece).map_err(io_error)?;
                hasher.update(piece);
                left -= piece.len() as u64;
                done += piece.len() as u64;
                if !progress(done, total) {
                    return Err(VerifyError::Stopped { path: file.path.clone() });
                }
            }
            if hasher.finalize() != checksum {
                let name = self.view.tensors.get(tensor).map(|tensor| tensor.name.clone());
                let name = name.unwrap_or_default();
                return Err(VerifyError::Damaged { path: file.path.clone(), name });
            }
        }
        Ok(())
    }

    /// Everything behind the header, in the order of the file.
    fn sections(&self) -> Vec<Section> {
        let tensors = &self.view.tensors;
        let plain = self.plain_checksums().iter().filter_map(|&(index, checksum)| {
            let tensor = tensors.get(index)?;
            let len = align_up(tensor.bytes, HOT_ALIGNMENT)?;
            Some(Section { offset: tensor.offset, len, checksum, tensor: index })
        });
        let hot = self.groups().iter().map(|group| Section {
            offset: group.offset,
            len: group.stride * u64::from(group.blocks), // within the file
            checksum: group.checksum,
            tensor: group.tensors.first().copied().unwrap_or_default(),
        });
        plain.chain(hot).collect()
    }
}

/// What has one checksum.
struct Section {
    offset: u64,
    len: u64,
    checksum: Checksum,
    /// One of its tensors.
    tensor: usize,
}

/// Asks the system to read from the drive what it may still have in memory.
fn forget_cached(file: &File) {
    // A hint: where it is not taken, less is checked, and nothing is wrong.
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}
