//! Bodies of fuzz tests: given any bytes, they must neither panic, hang, nor take memory out of
//! proportion. `fuzz/` runs them under cargo-fuzz, `tests/fuzz.rs` on mutated images in every build.

use crate::block::{HEADER_BYTES, checksum, decode, encode};
use crate::name::FileName;

/// Bytes of a checksum.
const HASH_BYTES: usize = 32;
/// Where a header keeps the payload's length.
const PAYLOAD_BYTES_AT: usize = 120;
/// Where a header keeps the payload's checksum.
const PAYLOAD_CHECKSUM_AT: usize = 128;

/// Reads `data` as the image of a block, as it is and with checksums that are right, which would
/// refuse nearly every change; and as the name of a file.
///
/// # Panics
/// If a block that was read doesn't give the same image.
pub fn fuzz_block(data: &[u8]) {
    check_canonical(data);
    let mut sealed = data.to_vec();
    if seal(&mut sealed).is_some() {
        check_canonical(&sealed);
    }
    let name = String::from_utf8_lossy(data);
    for line in name.lines() {
        if let Some(found) = FileName::parse(line) {
            assert_eq!(found.to_string(), line);
        }
    }
}

fn check_canonical(image: &[u8]) {
    if let Ok(block) = decode(image) {
        assert_eq!(block.check(), Ok(()));
        assert!(encode(&block) == image, "an image that was read is written differently");
    }
}

/// Makes both checksums right; `None` if the image is too short for them.
fn seal(image: &mut [u8]) -> Option<()> {
    let (header, rest) = image.split_at_mut_checked(HEADER_BYTES)?;
    let bytes =
        header.get(PAYLOAD_BYTES_AT..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let payload = usize::try_from(bytes?).ok().and_then(|bytes| rest.get(..bytes));
    if let Some(payload) = payload {
        let checksum = checksum(payload);
        header.get_mut(PAYLOAD_CHECKSUM_AT..)?.first_chunk_mut().map(|at| *at = checksum)?;
    }
    let (sealed, hash) = header.split_at_mut_checked(HEADER_BYTES - HASH_BYTES)?;
    hash.copy_from_slice(blake3::hash(sealed).as_bytes());
    Some(())
}
