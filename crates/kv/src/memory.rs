//! Blocks in memory.

use std::sync::Arc;

use hypura_io::Buffer;

use crate::block::{HEADER_BYTES, checksum, encode_header};
use crate::{Block, BlockKey, Scope, Token};

/// A block in memory, shared by the tiers and whoever reads it.
#[derive(Debug)]
pub(crate) struct MemBlock {
    pub(crate) key: BlockKey,
    pub(crate) scope: Scope,
    pub(crate) from: u32,
    pub(crate) tokens: Vec<Token>,
    payload: Payload,
}

#[derive(Debug)]
enum Payload {
    Bytes(Vec<u8>),
    /// The image as it was read: the payload follows the header and has so many bytes.
    Image(Buffer, usize),
}

impl MemBlock {
    pub(crate) fn new(block: Block) -> MemBlock {
        let Block { key, scope, from, tokens, payload } = block;
        MemBlock { key, scope, from, tokens, payload: Payload::Bytes(payload) }
    }

    /// A block that was read: an image whose header is `header`.
    pub(crate) fn read(header: crate::block::Header, image: Buffer) -> MemBlock {
        let crate::block::Header { key, scope, from, tokens, payload_bytes, .. } = header;
        let payload_bytes = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
        MemBlock { key, scope, from, tokens, payload: Payload::Image(image, payload_bytes) }
    }

    pub(crate) fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::Bytes(bytes) => bytes,
            Payload::Image(image, bytes) => {
                let rest = image.as_slice().get(HEADER_BYTES..).unwrap_or_default();
                rest.get(..*bytes).unwrap_or_default()
            }
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        match &self.payload {
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::Image(image, _) => image.len() as u64,
        }
    }

    pub(crate) fn image_bytes(&self) -> u64 {
        crate::block::image_bytes(self.payload().len() as u64)
    }

    /// The header of its image. It takes the checksum of the payload.
    pub(crate) fn encode_header(&self) -> Vec<u8> {
        let payload = self.payload();
        let checksum = checksum(payload);
        let len = payload.len() as u64;
        encode_header(&self.key, &self.scope, self.from, &self.tokens, len, &checksum)
    }

    /// The buffer that it was read to, if nobody else has the block.
    pub(crate) fn into_buffer(self: Arc<MemBlock>) -> Option<Buffer> {
        match Arc::into_inner(self)?.payload {
            Payload::Bytes(_) => None,
            Payload::Image(image, _) => Some(image),
        }
    }
}
