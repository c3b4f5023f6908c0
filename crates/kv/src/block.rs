//! A block, and the file that it is.
//!
//! Portable session files embed these images, so a change here is a new [`FORMAT_VERSION`]. All
//! numbers are little-endian. An image is canonical: a block has one image only.
//!
//! ```text
//! offset  bytes
//!      0      8  "HYPURAKV"
//!      8      4  version, 1
//!     12      4  kind: 0 tokens, 1 checkpoint
//!     16     32  scope
//!     48     32  parent: the node before the block
//!     80     32  node: the node after it; a checkpoint's parent is its node
//!    112      4  from: tokens before the block; a checkpoint's position
//!    116      4  n: tokens in the block, 1 to 512; 0 in a checkpoint
//!    120      8  payload_bytes
//!    128     16  XXH3 (128 bits) of the payload
//!    144    4 n  the tokens
//!              0  up to 4064
//!   4064     32  BLAKE3 of the 4064 bytes before
//!   4096         the payload, then zeros up to a multiple of 4096
//! ```
//!
//! The payload's checksum is there to notice damage, and is checked on the way from the drive into
//! the context: XXH3 keeps up with any drive (7 GB/s on a core where BLAKE3 does 2). Who could forge
//! it could write the file. <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>

use twox_hash::XxHash3_128;

use crate::{FORMAT_VERSION, NodeId, Scope, Token};

/// Tokens in a block at most.
pub const BLOCK_TOKENS_MAX: usize = 512;
/// Bytes in a payload at most.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 30;
/// Bytes of the header; images are multiples of it.
pub const HEADER_BYTES: usize = 4096;

pub(crate) const PAGE_BYTES: u64 = HEADER_BYTES as u64;

const MAGIC: &[u8; 8] = b"HYPURAKV";
const HASH_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 16;
const SEALED_BYTES: usize = HEADER_BYTES - HASH_BYTES;

const _: () = assert!(144 + BLOCK_TOKENS_MAX * size_of::<Token>() <= SEALED_BYTES);

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockKind {
    /// The state that some tokens add to the state before them.
    Tokens,
    /// State that is valid at one node only, such as that of a recurrent model.
    Checkpoint,
}

/// Names a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// The node before the block.
    pub parent: NodeId,
    /// The node after it; the same as `parent` in a checkpoint.
    pub node: NodeId,
    /// What it holds.
    pub kind: BlockKind,
    /// Tokens in it; 0 in a checkpoint.
    pub n_tokens: u32,
}

impl BlockKey {
    /// The key of a block of tokens.
    pub const fn tokens(parent: NodeId, node: NodeId, n_tokens: u32) -> BlockKey {
        BlockKey { parent, node, kind: BlockKind::Tokens, n_tokens }
    }

    /// The key of a node's checkpoint.
    pub const fn checkpoint(node: NodeId) -> BlockKey {
        BlockKey { parent: node, node, kind: BlockKind::Checkpoint, n_tokens: 0 }
    }

    fn check(&self) -> Result<(), BlockError> {
        let is_sound = match self.kind {
            BlockKind::Tokens => (1..=BLOCK_TOKENS_MAX as u64).contains(&u64::from(self.n_tokens)),
            BlockKind::Checkpoint => self.n_tokens == 0 && self.parent == self.node,
        };
        if is_sound { Ok(()) } else { Err(BlockError::BadField { what: "key" }) }
    }
}

/// State, and what it is the state of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub key: BlockKey,
    /// What it depends on beside tokens.
    pub scope: Scope,
    /// Tokens before it; the position of a checkpoint.
    pub from: u32,
    /// Its tokens; none in a checkpoint.
    pub tokens: Vec<Token>,
    /// The state, opaque to this crate.
    pub payload: Vec<u8>,
}

/// Bytes that are not a block, or not the one that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// No magic at the beginning.
    #[error("it doesn't begin like a block")]
    NotABlock,
    /// Written by another version.
    #[error("it has version {found}; this program reads version {FORMAT_VERSION}")]
    Version {
        /// The version that it says it has.
        found: u32,
    },
    /// Shorter or longer than its header says.
    #[error("it has {found_bytes} bytes where {wanted_bytes} are right")]
    Length {
        /// Bytes that there should be.
        wanted_bytes: u64,
        /// Bytes that there are.
        found_bytes: u64,
    },
    /// The header's checksum is wrong.
    #[error("its header doesn't match its checksum")]
    HeaderChecksum,
    /// The payload's checksum is wrong.
    #[error("its payload doesn't match its checksum")]
    PayloadChecksum,
    /// A field has a value that no block has.
    #[error("its {what} is impossible")]
    BadField {
        /// Which field.
        what: &'static str,
    },
    /// It is sound, but another block than its name says.
    #[error("it is another block: its {what} differs")]
    OtherBlock {
        /// Which field.
        what: &'static str,
    },
}

impl Block {
    /// Whether this can be a block at all.
    ///
    /// # Errors
    /// [`BlockError::BadField`] names what is wrong.
    pub fn check(&self) -> Result<(), BlockError> {
        self.key.check()?;
        check_rest(&self.key, self.from, self.tokens.len(), self.payload.len() as u64)
    }

    /// Bytes of its image.
    pub fn image_bytes(&self) -> u64 {
        image_bytes(self.payload.len() as u64)
    }

    /// The first page of its image. It takes the checksum of the payload.
    ///
    /// What [`Block::check`] refuses gives a header that the decoder refuses.
    pub fn encode_header(&self) -> Vec<u8> {
        let checksum = checksum(&self.payload);
        let len = self.payload.len() as u64;
        encode_header(&self.key, &self.scope, self.from, &self.tokens, len, &checksum)
    }
}

/// The checksum of a payload.
pub(crate) fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    XxHash3_128::oneshot(payload).to_le_bytes()
}

/// The image of a block: what its file holds.
pub fn encode(block: &Block) -> Vec<u8> {
    let padding = padding_bytes(block.payload.len());
    let mut image = block.encode_header();
    image.reserve_exact(block.payload.len() + padding);
    image.extend_from_slice(&block.payload);
    image.resize(image.len() + padding, 0);
    image
}

/// Reads an image, all of it, and checks its checksums.
///
/// # Errors
/// [`BlockError`] says why it is none.
pub fn decode(image: &[u8]) -> Result<Block, BlockError> {
    let header = Header::decode(image)?;
    let payload = header.payload(image)?.to_vec();
    let Header { key, scope, from, tokens, .. } = header;
    Ok(Block { key, scope, from, tokens, payload })
}

/// A header that was read.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) key: BlockKey,
    pub(crate) scope: Scope,
    pub(crate) from: u32,
    pub(crate) tokens: Vec<Token>,
    pub(crate) payload_bytes: u64,
    payload_checksum: [u8; CHECKSUM_BYTES],
}

impl Header {
    /// Reads the first page of an image; what follows is not looked at.
    pub(crate) fn decode(image: &[u8]) -> Result<Header, BlockError> {
        let (Some(sealed), Some(hash)) =
            (image.get(..SEALED_BYTES), image.get(SEALED_BYTES..HEADER_BYTES))
        else {
            return Err(BlockError::Length {
                wanted_bytes: PAGE_BYTES,
                found_bytes: image.len() as u64,
            });
        };
        let mut fields = Fields(sealed);
        if fields.take::<8>()? != *MAGIC {
            return Err(BlockError::NotABlock);
        }
        let found = fields.u32()?;
        if found != FORMAT_VERSION {
            return Err(BlockError::Version { found });
        }
        if blake3::hash(sealed).as_bytes() != hash {
            return Err(BlockError::HeaderChecksum);
        }
        let kind = match fields.u32()? {
            0 => BlockKind::Tokens,
            1 => BlockKind::Checkpoint,
            _ => return Err(BlockError::BadField { what: "kind" }),
        };
        let scope = Scope::from_bytes(fields.take()?);
        let parent = NodeId::from_bytes(fields.take()?);
        let node = NodeId::from_bytes(fields.take()?);
        let from = fields.u32()?;
        let key = BlockKey { parent, node, kind, n_tokens: fields.u32()? };
        key.check()?; // before tokens are read: it bounds them
        let payload_bytes = u64::from_le_bytes(fields.take()?);
        let payload_checksum = fields.take()?;
        let tokens = (0..key.n_tokens)
            .map(|_| fields.take().map(Token::from_le_bytes))
            .collect::<Result<Vec<Token>, BlockError>>()?;
        check_rest(&key, from, tokens.len(), payload_bytes)?;
        if fields.0.iter().any(|&byte| byte != 0) {
            return Err(BlockError::BadField { what: "padding" });
        }
        Ok(Header { key, scope, from, tokens, payload_bytes, payload_checksum })
    }

    /// The payload in the image that this header is from, after a look at its checksum.
    pub(crate) fn payload<'a>(&self, image: &'a [u8]) -> Result<&'a [u8], BlockError> {
        let wanted_bytes = image_bytes(self.payload_bytes);
        if image.len() as u64 != wanted_bytes {
            return Err(BlockError::Length { wanted_bytes, found_bytes: image.len() as u64 });
        }
        let rest = image.get(HEADER_BYTES..).unwrap_or_default();
        let split = usize::try_from(self.payload_bytes).ok().and_then(|n| rest.split_at_checked(n));
        let Some((payload, padding)) = split else {
            return Err(BlockError::BadField { what: "payload length" });
        };
        if checksum(payload) != self.payload_checksum {
            return Err(BlockError::PayloadChecksum);
        }
        if padding.iter().any(|&byte| byte != 0) {
            return Err(BlockError::BadField { what: "padding" });
        }
        Ok(payload)
    }
}

/// Bytes of the image of a block with so much payload.
pub(crate) fn image_bytes(payload_bytes: u64) -> u64 {
    PAGE_BYTES
        .saturating_add(payload_bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(u64::MAX))
}

/// Whether a file of this size can be an image.
pub(crate) fn check_image_bytes(found_bytes: u64) -> Result<(), BlockError> {
    let most = image_bytes(PAYLOAD_BYTES_MAX);
    if (PAGE_BYTES..=most).contains(&found_bytes) && found_bytes.is_multiple_of(PAGE_BYTES) {
        return Ok(());
    }
    let wanted_bytes = found_bytes.clamp(PAGE_BYTES, most).next_multiple_of(PAGE_BYTES);
    Err(BlockError::Length { wanted_bytes, found_bytes })
}

/// Zeros after a payload.
pub(crate) const fn padding_bytes(payload_bytes: usize) -> usize {
    payload_bytes.next_multiple_of(HEADER_BYTES) - payload_bytes
}

pub(crate) fn encode_header(
    key: &BlockKey,
    scope: &Scope,
    from: u32,
    tokens: &[Token],
    payload_bytes: u64,
    payload_checksum: &[u8; CHECKSUM_BYTES],
) -> Vec<u8> {
    let kind: u32 = match key.kind {
        BlockKind::Tokens => 0,
        BlockKind::Checkpoint => 1,
    };
    let mut page = Vec::with_capacity(HEADER_BYTES);
    page.extend_from_slice(MAGIC);
    page.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    page.extend_from_slice(&kind.to_le_bytes());
    for hash in [scope.bytes(), key.parent.bytes(), key.node.bytes()] {
        page.extend_from_slice(hash);
    }
    page.extend_from_slice(&from.to_le_bytes());
    page.extend_from_slice(&key.n_tokens.to_le_bytes());
    page.extend_from_slice(&payload_bytes.to_le_bytes());
    page.extend_from_slice(payload_checksum);
    for token in tokens.iter().take(BLOCK_TOKENS_MAX) {
        page.extend_from_slice(&token.to_le_bytes());
    }
    page.resize(SEALED_BYTES, 0);
    let hash = blake3::hash(&page);
    page.extend_from_slice(hash.as_bytes());
    page
}

fn check_rest(
    key: &BlockKey,
    from: u32,
    n_tokens: usize,
    payload_bytes: u64,
) -> Result<(), BlockError> {
    let bad = |what| Err(BlockError::BadField { what });
    if u32::try_from(n_tokens) != Ok(key.n_tokens) {
        return bad("number of tokens");
    }
    if from.checked_add(key.n_tokens).is_none() {
        return bad("position");
    }
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return bad("payload length");
    }
    Ok(())
}

/// Takes fields off the front of a page.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BlockError> {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else {
            return Err(BlockError::BadField { what: "header" });
        };
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, BlockError> {
        self.take().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chain;

    /// Changing this changes the fixture.
    fn sample(payload_bytes: usize) -> Block {
        let scope = Scope::from_bytes([7; 32]);
        let mut chain = Chain::new(&scope);
        chain.push(&[1, 2, 3]);
        let parent = chain.node();
        let tokens = vec![4, -5, i32::MAX, i32::MIN];
        chain.push(&tokens);
        let payload = (0..=250).cycle().step_by(7).take(payload_bytes).collect();
        Block { key: BlockKey::tokens(parent, chain.node(), 4), scope, from: 3, tokens, payload }
    }

    #[test]
    fn a_block_survives_its_image() {
        for payload_bytes in [0, 1, 4095, 4096, 4097, 100_000] {
            let block = sample(payload_bytes);
            let image = encode(&block);
            assert_eq!(image.len() as u64, block.image_bytes());
            assert_eq!(image.len() % HEADER_BYTES, 0);
            assert_eq!(decode(&image), Ok(block));
        }
        let node = sample(0).key.node;
        let mut checkpoint = sample(10);
        checkpoint.key = BlockKey::checkpoint(node);
        checkpoint.tokens.clear();
        assert_eq!(decode(&encode(&checkpoint)), Ok(checkpoint));
        let mut full = sample(10);
        full.tokens = (0..512).collect();
        full.key.n_tokens = 512;
        assert_eq!(decode(&encode(&full)), Ok(full));
    }

    #[test]
    fn the_image_of_version_1_still_reads() {
        let fixture = include_bytes!("../tests/fixtures/block-v1.kv");
        assert_eq!(decode(fixture), Ok(sample(5000)));
        assert_eq!(encode(&sample(5000)), fixture);
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let image = encode(&sample(5000));
        for at in 0..image.len() {
            let mut image = image.clone();
            image[at] ^= 1 << (at % 8);
            assert!(decode(&image).is_err(), "byte {at}");
        }
        for len in [0, 1, 4095, 4096, 8192, image.len() - 1] {
            let found_bytes = len as u64;
            let error = decode(&image[..len]).expect_err("it is cut");
            assert!(
                matches!(error, BlockError::Length { found_bytes: found, .. } if found == found_bytes)
            );
        }
        let longer = [image.as_slice(), &[0; 4096]].concat();
        assert!(matches!(decode(&longer), Err(BlockError::Length { .. })));
    }

    #[test]
    fn what_is_no_block_is_refused_on_both_sides() {
        let spoil: [fn(&mut Block); 6] = [
            |block| block.key.n_tokens = 3,
            |block| block.tokens.clear(),
            |block| block.from = u32::MAX - 1,
            |block| block.key.kind = BlockKind::Checkpoint,
            |block| (block.key.n_tokens, block.tokens) = (513, vec![1; 513]),
            |block| (block.key.n_tokens, block.tokens) = (0, Vec::new()),
        ];
        for spoil in spoil {
            let mut block = sample(10);
            spoil(&mut block);
            assert!(block.check().is_err(), "{block:?}");
            let decoded = decode(&encode(&block));
            assert!(decoded.as_ref() != Ok(&block), "{decoded:?}");
        }
        assert_eq!(sample(10).check(), Ok(()));
    }

    #[test]
    fn sizes_of_files() {
        for right in [4096, 8192, 4096 + (1 << 30)] {
            assert_eq!(check_image_bytes(right), Ok(()));
        }
        for wrong in [0, 1, 4095, 4097, 8192 + (1 << 30), u64::MAX] {
            assert!(check_image_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
