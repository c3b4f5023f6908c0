//! Options about attention state.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hypura_engine::{HotLimit, KvOptions, plan::KvType};

use crate::size;

const KV: &str = "Attention state (KV cache)";

/// Where attention state is kept, and in what form.
#[derive(Debug, Args)]
pub(crate) struct KvArgs {
    /// Whether attention state is kept beside the context, so that what was computed once is read
    /// back, also by a later run
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Switch::On, help_heading = KV)]
    pub(crate) kv_cache: Switch,

    /// The folder for it [default: the platform's cache folder]
    #[arg(long, value_name = "DIR", help_heading = KV)]
    pub(crate) cold_cache: Option<PathBuf>,

    /// What all files in that folder may take together
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "8GiB", help_heading = KV)]
    pub(crate) cold_cache_size: u64,

    /// What may be written to it per day
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64GiB", help_heading = KV)]
    pub(crate) cold_cache_writes: u64,

    /// What of an idle conversation stays in memory: a number of tokens, or a size such as 1GiB
    /// [default: all of it]
    #[arg(long, value_name = "TOKENS|SIZE", value_parser = hot_limit, help_heading = KV)]
    pub(crate) hot_cache: Option<HotLimit>,

    /// Type of keys and values; anything but f16 is lossy: the text changes a little
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = KvTypeArg::F16, help_heading = KV)]
    pub(crate) kv_type: KvTypeArg,

    /// Type of the keys alone
    #[arg(long, value_name = "TYPE", value_enum, help_heading = KV)]
    pub(crate) kv_type_k: Option<KvTypeArg>,

    /// Type of the values alone
    #[arg(long, value_name = "TYPE", value_enum, help_heading = KV)]
    pub(crate) kv_type_v: Option<KvTypeArg>,

    /// Tokens of a block, at most 256
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) kv_block: Option<u32>,

    /// Restore what is known even where computing it would be faster
    #[arg(long, hide = true)]
    pub(crate) always_restore: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum KvTypeArg {
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<KvTypeArg> for KvType {
    fn from(arg: KvTypeArg) -> KvType {
        match arg {
            KvTypeArg::F16 => KvType::F16,
            KvTypeArg::Q8_0 => KvType::Q8_0,
            KvTypeArg::Q4_0 => KvType::Q4_0,
        }
    }
}

impl KvArgs {
    pub(crate) fn type_k(&self) -> KvType {
        self.kv_type_k.unwrap_or(self.kv_type).into()
    }

    pub(crate) fn type_v(&self) -> KvType {
        self.kv_type_v.unwrap_or(self.kv_type).into()
    }

    /// What the engine is asked for; `None` if attention state is kept nowhere but in the context.
    pub(crate) fn options(&self) -> Option<KvOptions> {
        if self.kv_cache == Switch::Off {
            return None;
        }
        Some(KvOptions {
            cold_dir: self.cold_cache.clone().or_else(crate::home::kv),
            cold_bytes_max: self.cold_cache_size,
            cold_writes_per_day_max: self.cold_cache_writes,
            hot: self.hot_cache,
            block_tokens: self.kv_block,
            always_restore: self.always_restore,
            fingerprint_dir: crate::home::cache(),
            ..KvOptions::default()
        })
    }
}

/// A plain number is tokens, one with a unit bytes.
fn hot_limit(text: &str) -> Result<HotLimit, String> {
    let digits: String = text.trim().chars().filter(|&c| c != '_').collect();
    if digits.chars().all(|c| c.is_ascii_digit()) {
        let tokens = digits.parse().map_err(|_| format!("{text:?} is no number of tokens"))?;
        return Ok(HotLimit::Tokens(tokens));
    }
    size::parse(&digits).map(HotLimit::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hot_cache_is_tokens_or_bytes() {
        assert_eq!(hot_limit("16_000"), Ok(HotLimit::Tokens(16_000)));
        assert_eq!(hot_limit("0"), Ok(HotLimit::Tokens(0)));
        assert_eq!(hot_limit("1GiB"), Ok(HotLimit::Bytes(1 << 30)));
        assert!(hot_limit("lots").is_err());
        assert!(hot_limit("").is_err());
    }
}
