//! One file with a session and the images of its blocks, for another machine: `NAME.hypura`.
//!
//! ```text
//! offset    bytes
//! 0         8     magic, "HYPURA-P"
//! 8         4     version of the format, 1
//! 12        4     S, bytes of the session
//! 16        S     the session, as in its own file, with its own magic, version and checksum
//! 16+S            for each block, at most 1 Mi of them:
//!           4     N, bytes of its image, 1 to 128 MiB
//!           N     its image
//! ...       4     0, which ends the blocks
//! ...       4     number of blocks
//! ...       32    BLAKE3 of all bytes before
//! ```
//!
//! Numbers are little-endian. Nothing follows the checksum. Images mean nothing here; each has a
//! checksum of its own, so that it can be used before the end of the file has been seen.

use std::io::{self, Read, Write};

use super::format::SESSION_BYTES_MAX;
use super::{FormatError, Session};

/// Version of portable files.
pub const PORTABLE_VERSION: u32 = 1;

/// Bytes of one block's image at most.
pub const BLOCK_IMAGE_BYTES_MAX: usize = 128 << 20;

/// Blocks of a portable file at most.
pub const BLOCK_IMAGES_MAX: u32 = 1 << 20;

const MAGIC: &[u8; 8] = b"HYPURA-P";

/// Memory that a length in a file gets on trust; more when the bytes have come.
const TRUSTED_BYTES_MAX: usize = 1 << 20;

/// A portable file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum PortableError {
    #[error("this is no saved session of hypura; name another file")]
    Foreign,
    #[error(
        "the file has version {found}, and this hypura reads version {PORTABLE_VERSION}; update \
         hypura"
    )]
    Version { found: u32 },
    #[error("the file is cut short after {got_bytes} bytes; copy or save it again")]
    Truncated { got_bytes: u64 },
    #[error("the file goes on after its end; copy or save it again")]
    Trailing,
    #[error("the file is damaged: {what}; copy or save it again")]
    Damaged { what: &'static str },
    #[error("the session in the file can't be used: {source}")]
    Session { source: FormatError },
    #[error("the session can't be saved: {source}")]
    Unsavable { source: FormatError },
    #[error(
        "the session has a block of {got_bytes} bytes, and 1 to {BLOCK_IMAGE_BYTES_MAX} is what \
         a file takes; this is a bug: report it"
    )]
    BlockSize { got_bytes: usize },
    #[error("the session has more than {BLOCK_IMAGES_MAX} blocks; begin a new session")]
    TooManyBlocks,
    #[error("a block of the session can't be read: {source}; try again")]
    Block { source: io::Error },
    #[error("the file can't be read: {source}")]
    Read { source: io::Error },
    #[error("the file can't be written: {source}")]
    Write { source: io::Error },
    #[error("the file was refused before; open it again")]
    Refused,
}

/// What is in a portable file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortableSummary {
    /// Blocks, beside the session.
    pub n_blocks: u32,
    /// Bytes of the whole file.
    pub bytes: u64,
}

/// Writes a session and the images of its blocks, one after the other.
///
/// What was written is flushed, but it is up to the caller to make it durable.
///
/// # Errors
/// [`PortableError`]; what was written by then is of no use, and readers notice.
pub fn write_portable(
    out: &mut impl Write,
    session: &Session,
    blocks: impl IntoIterator<Item = io::Result<Vec<u8>>>,
) -> Result<PortableSummary, PortableError> {
    let session = session.encode().map_err(|source| PortableError::Unsavable { source })?;
    let mut out = Summed { inner: out, hash: blake3::Hasher::new(), bytes: 0 };
    out.write(MAGIC)?;
    out.write(&PORTABLE_VERSION.to_le_bytes())?;
    out.write_record(&session)?;
    let mut n_blocks = 0_u32;
    for block in blocks {
        let block = block.map_err(|source| PortableError::Block { source })?;
        if !(1..=BLOCK_IMAGE_BYTES_MAX).contains(&block.len()) {
            return Err(PortableError::BlockSize { got_bytes: block.len() });
        }
        if n_blocks == BLOCK_IMAGES_MAX {
            return Err(PortableError::TooManyBlocks);
        }
        n_blocks += 1;
        out.write_record(&block)?;
    }
    out.write(&0_u32.to_le_bytes())?;
    out.write(&n_blocks.to_le_bytes())?;
    let checksum = out.hash.finalize();
    out.write(checksum.as_bytes())?;
    out.inner.flush().map_err(|source| PortableError::Write { source })?;
    Ok(PortableSummary { n_blocks, bytes: out.bytes })
}

/// Reads a portable file from its beginning to its end, block by block.
#[derive(Debug)]
pub struct PortableReader<R> {
    input: Summed<R>,
    session: Session,
    n_blocks: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Blocks,
    Ended,
    Refused,
}

impl<R: Read> PortableReader<R> {
    /// Reads up to the first block. The session is whole when it returns.
    ///
    /// # Errors
    /// [`PortableError`] if this is no portable file, or its session can't be used.
    pub fn open(input: R) -> Result<PortableReader<R>, PortableError> {
        let mut input = Summed { inner: input, hash: blake3::Hasher::new(), bytes: 0 };
        // Piece by piece: what is too short to be whole may still be seen to be something else.
        let magic = input.read_some(MAGIC.len())?;
        if !MAGIC.starts_with(&magic) {
            return Err(PortableError::Foreign);
        }
        if magic.len() < MAGIC.len() {
            return Err(input.truncated());
        }
        let version = input.read_number()?;
        if version != PORTABLE_VERSION {
            return Err(PortableError::Version { found: version });
        }
        let session_bytes = input.read_number()? as usize;
        if session_bytes > SESSION_BYTES_MAX {
            return Err(PortableError::Damaged { what: "its session is too large" });
        }
        let session = input.read(session_bytes)?;
        let session =
            Session::decode(&session).map_err(|source| PortableError::Session { source })?;
        Ok(PortableReader { input, session, n_blocks: 0, state: State::Blocks })
    }

    /// The session.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// The image of the next block; `None` when the file has ended, and is whole.
    ///
    /// Images come before the end of the file was seen, so they have to be verified one by one.
    ///
    /// # Errors
    /// [`PortableError`] says what is wrong with the file. Nothing more can be read then.
    pub fn next_block(&mut self) -> Result<Option<Vec<u8>>, PortableError> {
        match self.state {
            State::Blocks => {}
            State::Ended => return Ok(None),
            State::Refused => return Err(PortableError::Refused),
        }
        self.state = State::Refused;
        let block = self.read_block()?;
        self.state = if block.is_some() { State::Blocks } else { State::Ended };
        Ok(block)
    }

    /// Blocks and bytes read so far; those of the whole file once it has ended.
    pub const fn summary(&self) -> PortableSummary {
        PortableSummary { n_blocks: self.n_blocks, bytes: self.input.bytes }
    }

    /// What was read from, where reading stopped.
    pub fn into_inner(self) -> R {
        self.input.inner
    }

    fn read_block(&mut self) -> Result<Option<Vec<u8>>, PortableError> {
        let damaged = |what| Err(PortableError::Damaged { what });
        let bytes = self.input.read_number()? as usize;
        if bytes == 0 {
            return self.read_end().map(|()| None);
        }
        if bytes > BLOCK_IMAGE_BYTES_MAX {
            return damaged("a block is too large");
        }
        if self.n_blocks == BLOCK_IMAGES_MAX {
            return damaged("it has too many blocks");
        }
        let block = self.input.read(bytes)?;
        self.n_blocks += 1;
        Ok(Some(block))
    }

    fn read_end(&mut self) -> Result<(), PortableError> {
        let n_blocks = self.input.read_number()?;
        let wanted = self.input.hash.finalize();
        let checksum = self.input.read(blake3::OUT_LEN)?;
        if wanted.as_slice() != checksum {
            return Err(PortableError::Damaged { what: "its checksum doesn't fit" });
        }
        if n_blocks != self.n_blocks {
            return Err(PortableError::Damaged { what: "blocks are missing" });
        }
        if !self.input.read_some(1)?.is_empty() {
            return Err(PortableError::Trailing);
        }
        Ok(())
    }
}

/// A stream, with the checksum and number of the bytes that went through.
#[derive(Debug)]
struct Summed<S> {
    inner: S,
    hash: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), PortableError> {
        self.inner.write_all(bytes).map_err(|source| PortableError::Write { source })?;
        self.count(bytes);
        Ok(())
    }

    /// Writes `bytes`, behind their number, which must be less than 4 Gi.
    fn write_record(&mut self, bytes: &[u8]) -> Result<(), PortableError> {
        let number = u32::try_from(bytes.len())
            .map_err(|_| PortableError::BlockSize { got_bytes: bytes.len() })?;
        self.write(&number.to_le_bytes())?;
        self.write(bytes)
    }
}

impl<R: Read> Summed<R> {
    /// Exactly `len` bytes.
    fn read(&mut self, len: usize) -> Result<Vec<u8>, PortableError> {
        let bytes = self.read_some(len)?;
        if bytes.len() == len { Ok(bytes) } else { Err(self.truncated()) }
    }

    /// `len` bytes, or as many as there are.
    fn read_some(&mut self, len: usize) -> Result<Vec<u8>, PortableError> {
        let mut bytes = Vec::with_capacity(len.min(TRUSTED_BYTES_MAX));
        let read = self.inner.by_ref().take(len as u64).read_to_end(&mut bytes);
        read.map_err(|source| PortableError::Read { source })?;
        self.count(&bytes);
        Ok(bytes)
    }

    fn read_number(&mut self) -> Result<u32, PortableError> {
        let bytes = self.read(size_of::<u32>())?;
        let number = bytes.first_chunk().ok_or_else(|| self.truncated())?;
        Ok(u32::from_le_bytes(*number))
    }

    fn truncated(&self) -> PortableError {
        PortableError::Truncated { got_bytes: self.bytes }
    }
}

impl<S> Summed<S> {
    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::session;
    use super::*;

    const BLOCKS: [&[u8]; 3] = [b"first", b"x", b"third block"];

    fn file(blocks: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let images = blocks.iter().map(|block| Ok(block.to_vec()));
        let summary = write_portable(&mut bytes, &session(), images).expect("written");
        let n_blocks = u32::try_from(blocks.len()).expect("few");
        assert_eq!(summary, PortableSummary { n_blocks, bytes: bytes.len() as u64 });
        bytes
    }

    /// All blocks of a file, or the first error.
    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, PortableError> {
        let mut reader = PortableReader::open(bytes)?;
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block()? {
            blocks.push(block);
        }
        assert_eq!(reader.session(), &session());
        assert_eq!(reader.summary().bytes, bytes.len() as u64);
        assert_eq!(reader.summary().n_blocks as usize, blocks.len());
        Ok(blocks)
    }

    #[test]
    fn sessions_and_blocks_come_back_as_they_were() {
        assert_eq!(read(&file(&BLOCKS)).expect("whole"), BLOCKS);
        assert!(read(&file(&[])).expect("whole").is_empty());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let bytes = file(&BLOCKS);
        for len in 0..bytes.len() {
            let told = read(&bytes[..len]).expect_err("cut").to_string();
            assert!(told.contains(&format!("cut short after {len} bytes")), "{len}: {told}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut spoiled = bytes.clone();
            spoiled[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&spoiled).is_err(), "bit {bit}");
        }
    }

    type Change = fn(&mut Vec<u8>);

    #[test]
    fn each_fault_has_its_sentence() {
        let bytes = file(&BLOCKS);
        let cases: [(&str, Change); 8] = [
            ("no saved session", |b| b[0] = b'X'),
            ("version 2, and this hypura reads version 1", |b| b[8] = 2),
            ("version 0", |b| b[8] = 0),
            ("session is too large", |b| b[15] = 0xff),
            ("session in the file can't be used: it is damaged", |b| b[100] ^= 1),
            ("goes on after its end", |b| b.push(0)),
            ("checksum doesn't fit", |b| *b.last_mut().expect("bytes") ^= 1),
            ("blocks are missing", |b| {
                let end = b.len() - blake3::OUT_LEN;
                b[end - 4] += 1;
                let checksum = blake3::hash(&b[..end]);
                b[end..].copy_from_slice(checksum.as_bytes());
            }),
        ];
        for (words, change) in cases {
            let mut spoiled = bytes.clone();
            change(&mut spoiled);
            let told = read(&spoiled).expect_err("refused").to_string();
            assert!(told.contains(words), "{told}");
        }
        assert!(read(b"GGUF").expect_err("foreign").to_string().contains("no saved session"));
        let session_bytes = session().encode().expect("small enough").len();
        let mut spoiled = bytes;
        spoiled[16 + session_bytes + 3] = 0xff;
        let told = read(&spoiled).expect_err("refused").to_string();
        assert!(told.contains("a block is too large"), "{told}");
    }

    /// Fails where its bytes end, rather than ending.
    struct Breaks<'a>(&'a [u8]);

    impl Read for Breaks<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            match self.0.read(out)? {
                0 if !out.is_empty() => Err(io::Error::other("unplugged")),
                n => Ok(n),
            }
        }
    }

    #[test]
    fn blocks_come_before_the_end_was_seen() {
        let bytes = file(&BLOCKS);
        let third_at = bytes.len() - 40 - BLOCKS[2].len() - 4;
        let mut reader = PortableReader::open(Breaks(&bytes[..third_at])).expect("a session");
        for block in &BLOCKS[..2] {
            assert_eq!(reader.next_block().expect("whole").as_deref(), Some(*block));
        }
        let told = reader.next_block().expect_err("unplugged").to_string();
        assert_eq!(told, "the file can't be read: unplugged");
        assert!(matches!(reader.next_block(), Err(PortableError::Refused)));
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let write = |block: io::Result<Vec<u8>>| {
            write_portable(&mut Vec::new(), &session(), [Ok(vec![1]), block])
        };
        for len in [0, BLOCK_IMAGE_BYTES_MAX + 1] {
            let refused = write(Ok(vec![0; len]));
            assert!(
                matches!(refused, Err(PortableError::BlockSize { got_bytes }) if got_bytes == len)
            );
        }
        write(Ok(vec![0; BLOCK_IMAGE_BYTES_MAX])).expect("just small enough");
        let broken = write(Err(io::Error::other("gone")));
        assert!(matches!(broken, Err(PortableError::Block { .. })));
        let many = (0..=BLOCK_IMAGES_MAX).map(|_| Ok(vec![1]));
        let mut bytes = Vec::new();
        let refused = write_portable(&mut bytes, &session(), many);
        assert!(matches!(refused, Err(PortableError::TooManyBlocks)));
        // Of somebody who writes it all the same.
        bytes.extend([1, 0, 0, 0, 7]);
        let told = read(&bytes).expect_err("refused").to_string();
        assert!(told.contains("too many blocks"), "{told}");
        let full = write_portable(&mut [0; 50].as_mut_slice(), &session(), []);
        assert!(matches!(full, Err(PortableError::Write { .. })));
    }
}
