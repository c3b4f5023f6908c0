//! Names of the files in the folder.
//!
//! `<parent>-<node>-<from>-<n_tokens>.kv`, or `.ck` for a checkpoint; of both nodes the first 16
//! bytes, in hexadecimal. Names alone say what leads where, so that a folder is known without a
//! file of it being read.

use std::fmt;

use crate::block::BLOCK_TOKENS_MAX;
use crate::{BlockKey, BlockKind, NodeId, hex};

/// Ours, and half done or left behind.
pub(crate) const TEMPORARY_PREFIX: &str = "tmp-";
/// Held by whoever writes.
pub(crate) const LOCK_NAME: &str = "lock";
/// Bytes written so far.
pub(crate) const WEAR_NAME: &str = "wear.json";

/// The first half of a [`NodeId`].
pub(crate) type ShortNode = [u8; 16];

/// A [`BlockKey`] as far as a file name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockId {
    pub(crate) parent: ShortNode,
    pub(crate) node: ShortNode,
    pub(crate) kind: BlockKind,
    pub(crate) n_tokens: u32,
}

impl BlockId {
    pub(crate) fn of(key: &BlockKey) -> BlockId {
        BlockId {
            parent: short(&key.parent),
            node: short(&key.node),
            kind: key.kind,
            n_tokens: key.n_tokens,
        }
    }
}

/// The name of a block's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileName {
    pub(crate) id: BlockId,
    pub(crate) from: u32,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BlockId { parent, node, kind, n_tokens } = &self.id;
        let extension = match kind {
            BlockKind::Tokens => "kv",
            BlockKind::Checkpoint => "ck",
        };
        write!(f, "{}-{}-{}-{n_tokens}.{extension}", hex(parent), hex(node), self.from)
    }
}

impl FileName {
    /// Reads a name; `None` if it is not one that we give.
    pub(crate) fn parse(name: &str) -> Option<FileName> {
        let (stem, extension) = name.rsplit_once('.')?;
        let kind = match extension {
            "kv" => BlockKind::Tokens,
            "ck" => BlockKind::Checkpoint,
            _ => return None,
        };
        let mut parts = stem.split('-');
        let (parent, node) = (unhex(parts.next()?)?, unhex(parts.next()?)?);
        let (from, n_tokens): (u32, u32) =
            (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        from.checked_add(n_tokens)?;
        let is_sound = match kind {
            BlockKind::Tokens => n_tokens > 0 && n_tokens as usize <= BLOCK_TOKENS_MAX,
            BlockKind::Checkpoint => n_tokens == 0 && parent == node,
        };
        let found = FileName { id: BlockId { parent, node, kind, n_tokens }, from };
        // Upper case, plus signs and leading zeros parse, but we don't write them.
        (is_sound && found.to_string() == name).then_some(found)
    }
}

/// The first half of a node's name.
pub(crate) fn short(node: &NodeId) -> ShortNode {
    let mut short = ShortNode::default();
    short.copy_from_slice(node.bytes().split_at(size_of::<ShortNode>()).0);
    short
}

fn unhex(text: &str) -> Option<ShortNode> {
    let mut bytes = ShortNode::default();
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let node = NodeId::from_bytes([8; 32]);
        let parent = NodeId::from_bytes([0xab; 32]);
        for key in [BlockKey::tokens(parent, node, 256), BlockKey::checkpoint(node)] {
            let name = FileName { id: BlockId::of(&key), from: 1024 };
            assert_eq!(FileName::parse(&name.to_string()), Some(name));
        }
        let name = FileName { id: BlockId::of(&BlockKey::tokens(parent, node, 256)), from: 7 };
        let expected = "abababababababababababababababab-08080808080808080808080808080808-7-256.kv";
        assert_eq!(name.to_string(), expected);
    }

    #[test]
    fn other_names_are_not_ours() {
        let a = "ab".repeat(16);
        let right = format!("{a}-{a}-0-1.kv");
        assert!(FileName::parse(&right).is_some());
        let wrong = [
            String::new(),
            "wear.json".into(),
            "tmp-1-2".into(),
            right.to_uppercase(),
            format!("{a}-{a}-00-1.kv"),
            format!("{a}-{a}-+0-1.kv"),
            format!("{a}-{a}-0-0.kv"),
            format!("{a}-{a}-0-513.kv"),
            format!("{a}-{a}-0-1.ck"),
            format!("{a}-{a}-0-1-2.kv"),
            format!("{a}-{}-0-0.ck", "cd".repeat(16)),
            format!("{a}-{a}-4294967295-1.kv"),
            format!("{a}-{a}0-0-1.kv"),
            format!("{a}-{a}-0-1.kv.kv"),
            format!("{a}-{}ü-0-1.kv", "cd".repeat(15)),
        ];
        for wrong in wrong {
            assert_eq!(FileName::parse(&wrong), None, "{wrong}");
        }
    }
}
