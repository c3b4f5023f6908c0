//! Bodies of fuzz tests: given any bytes, they must neither panic, hang, nor take memory out of
//! proportion. `tests/session_fuzz.rs` runs them on mutated files in every build.

use std::io::{self, Read};

use super::{PortableError, PortableReader, Session, write_portable};

/// Where the length of the session in a portable file is.
const SESSION_LEN_AT: usize = 12;

/// Reads `data` as a session, as it is and with a checksum that fits, without which every change
/// would be refused for the same reason. What was read is written, and must read the same.
///
/// # Panics
/// If it doesn't.
pub fn fuzz_session(data: &[u8]) {
    for data in [data.to_vec(), sealed(data)] {
        let Ok(session) = Session::decode(&data) else { continue };
        match session.encode() {
            Ok(bytes) => assert_eq!(Session::decode(&bytes).ok(), Some(session)),
            Err(error) => panic!("a session that was read can't be written: {error}"),
        }
    }
}

/// Reads `data` as a portable file, as it is and with checksums that fit. What was read is written,
/// and must read the same, also from a source that gives one byte at a time.
///
/// # Panics
/// If it doesn't.
pub fn fuzz_portable(data: &[u8]) {
    for data in [data.to_vec(), sealed(data), sealed(&with_sealed_session(data))] {
        let whole = read_all(data.as_slice());
        let slow = read_all(Slow(&data));
        let Ok((session, blocks)) = whole else {
            assert!(slow.is_err(), "only a slow source is accepted");
            continue;
        };
        assert_eq!(slow.ok().as_ref(), Some(&(session.clone(), blocks.clone())));
        let mut bytes = Vec::new();
        if let Err(error) = write_portable(&mut bytes, &session, blocks.iter().cloned().map(Ok)) {
            panic!("a file that was read can't be written: {error}");
        }
        assert_eq!(read_all(bytes.as_slice()).ok(), Some((session, blocks)));
    }
}

fn read_all(input: impl Read) -> Result<(Session, Vec<Vec<u8>>), PortableError> {
    let mut reader = PortableReader::open(input)?;
    let mut blocks = Vec::new();
    loop {
        match reader.next_block() {
            Ok(Some(block)) => blocks.push(block),
            Ok(None) => {
                assert!(matches!(reader.next_block(), Ok(None)), "the end stays the end");
                return Ok((reader.session().clone(), blocks));
            }
            Err(error) => {
                assert!(matches!(reader.next_block(), Err(PortableError::Refused)));
                return Err(error);
            }
        }
    }
}

/// `data` with a checksum at its end that fits.
fn sealed(data: &[u8]) -> Vec<u8> {
    let content = data.get(..data.len().saturating_sub(blake3::OUT_LEN)).unwrap_or_default();
    [content, blake3::hash(content).as_bytes()].concat()
}

/// A portable file whose session has a checksum that fits.
fn with_sealed_session(data: &[u8]) -> Vec<u8> {
    let split = || {
        let (head, rest) = data.split_at_checked(SESSION_LEN_AT)?;
        let (len, rest) = rest.split_first_chunk()?;
        let (session, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        // A session that is shorter than a checksum can't get one without growing.
        let session =
            if session.len() < blake3::OUT_LEN { session.to_vec() } else { sealed(session) };
        Some([head, len, session.as_slice(), rest].concat())
    };
    split().unwrap_or_else(|| data.to_vec())
}

/// Gives one byte at a time.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = out.len().min(1);
        self.0.read(out.get_mut(..len).unwrap_or_default())
    }
}
