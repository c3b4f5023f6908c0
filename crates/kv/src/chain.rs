//! Names of attention state: a hash over everything that changes it.
//!
//! The state after some tokens depends on the tokens, in order, and on what computes them: the
//! model's weights, the types of the cache, the attention kernel and so on, which together are a
//! [`Scope`]. A [`NodeId`] is the BLAKE3 hash of both. It does not depend on how the tokens were cut
//! into blocks, so blocks of one conversation continue those of another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Version of names and files. A change of either is a new number: old state is then not found.
pub const FORMAT_VERSION: u32 = 1;

/// A token's number in the model's vocabulary.
pub type Token = i32;

/// Everything that the state depends on, beside tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeFields {
    /// Fingerprint of the model: of all of its bytes, weights included, in hexadecimal.
    pub model: String,
    /// Type of the keys in the cache, such as `f16`.
    pub type_k: String,
    /// Type of the values in the cache.
    pub type_v: String,
    /// Whether quantized keys and values are rotated.
    pub rotation: String,
    /// The attention kernel.
    pub flash_attention: String,
    /// Settings of position encoding that are not the model's own.
    pub positions: String,
    /// Adapters that change the weights.
    pub adapters: String,
    /// The compute library and its version.
    pub library: String,
    /// The device that computes.
    pub backend: String,
    /// The layout of the weights.
    pub layout: String,
    /// Whose state it is: tenants never see each other's.
    pub tenant: String,
}

/// [`ScopeFields`] as one hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope([u8; 32]);

/// The state after some tokens in some scope.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId([u8; 32]);

impl Scope {
    /// The hash of all fields, each with its name and length.
    pub fn new(fields: &ScopeFields) -> Scope {
        let ScopeFields {
            model,
            type_k,
            type_v,
            rotation,
            flash_attention,
            positions,
            adapters,
            library,
            backend,
            layout,
            tenant,
        } = fields;
        let mut hash = blake3::Hasher::new_derive_key("hypura attention state scope");
        hash.update(&FORMAT_VERSION.to_le_bytes());
        for (name, value) in [
            ("model", model),
            ("type_k", type_k),
            ("type_v", type_v),
            ("rotation", rotation),
            ("flash_attention", flash_attention),
            ("positions", positions),
            ("adapters", adapters),
            ("library", library),
            ("backend", backend),
            ("layout", layout),
            ("tenant", tenant),
        ] {
            for text in [name, value.as_str()] {
                hash.update(&(text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            }
        }
        Scope(*hash.finalize().as_bytes())
    }

    /// A scope that was written down.
    pub const fn from_bytes(bytes: [u8; 32]) -> Scope {
        Scope(bytes)
    }

    /// Its 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl NodeId {
    /// A name that was written down.
    pub const fn from_bytes(bytes: [u8; 32]) -> NodeId {
        NodeId(bytes)
    }

    /// Its 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", hex(&self.0[..4]))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", hex(&self.0[..4]))
    }
}

/// Bytes in hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A list of tokens as it grows, and the name of the state after each of them.
#[derive(Clone)]
pub struct Chain {
    hash: blake3::Hasher,
    n_tokens: usize,
}

impl Chain {
    /// No tokens yet.
    pub fn new(scope: &Scope) -> Chain {
        let mut hash = blake3::Hasher::new_keyed(&scope.0);
        hash.update(b"tokens");
        Chain { hash, n_tokens: 0 }
    }

    /// Adds tokens.
    pub fn push(&mut self, tokens: &[Token]) {
        for token in tokens {
            self.hash.update(&token.to_le_bytes());
        }
        self.n_tokens += tokens.len();
    }

    /// The name of the state after the tokens so far.
    pub fn node(&self) -> NodeId {
        NodeId(*self.hash.finalize().as_bytes())
    }

    /// Tokens so far.
    pub const fn len(&self) -> usize {
        self.n_tokens
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.n_tokens == 0
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({} tokens, {:?})", self.n_tokens, self.node())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> ScopeFields {
        let text = |text: &str| text.to_owned();
        ScopeFields {
            model: text("00"),
            type_k: text("f16"),
            type_v: text("f16"),
            rotation: text("on"),
            flash_attention: text("auto"),
            positions: String::new(),
            adapters: String::new(),
            library: text("llama.cpp 1"),
            backend: text("CPU"),
            layout: text("plain"),
            tenant: String::new(),
        }
    }

    #[test]
    fn each_field_counts_and_none_runs_into_the_next() {
        let base = Scope::new(&fields());
        let change: [fn(&mut ScopeFields); 11] = [
            |f| f.model.push('x'),
            |f| f.type_k.push('x'),
            |f| f.type_v.push('x'),
            |f| f.rotation.push('x'),
            |f| f.flash_attention.push('x'),
            |f| f.positions.push('x'),
            |f| f.adapters.push('x'),
            |f| f.library.push('x'),
            |f| f.backend.push('x'),
            |f| f.layout.push('x'),
            |f| f.tenant.push('x'),
        ];
        let mut seen = vec![base];
        for change in change {
            let mut fields = fields();
            change(&mut fields);
            let scope = Scope::new(&fields);
            assert!(!seen.contains(&scope), "{fields:?}");
            seen.push(scope);
        }
    }

    #[test]
    fn a_name_depends_on_tokens_and_scope_and_not_on_how_they_came() {
        let scope = Scope::new(&fields());
        let of = |scope: &Scope, parts: &[&[Token]]| {
            let mut chain = Chain::new(scope);
            parts.iter().for_each(|part| chain.push(part));
            chain.node()
        };
        assert_eq!(of(&scope, &[&[1, 2, 3]]), of(&scope, &[&[1], &[], &[2, 3]]));
        assert_ne!(of(&scope, &[&[1, 2, 3]]), of(&scope, &[&[1, 3, 2]]));
        assert_ne!(of(&scope, &[&[1, 2]]), of(&scope, &[&[1, 2, 0]]));
        let other = Scope::new(&ScopeFields { tenant: "them".into(), ..fields() });
        assert_ne!(of(&scope, &[&[1, 2, 3]]), of(&other, &[&[1, 2, 3]]));
    }
}
