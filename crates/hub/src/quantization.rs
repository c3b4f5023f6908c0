//! What a model's quantization and size are called.

use std::collections::BTreeMap;

use hypura_gguf::Model;

/// The name of how a model is quantized: what `general.file_type` says, or else the type that most
/// bytes of its tensors have.
pub(crate) fn quantization(model: &Model) -> String {
    if let Some(name) = model.metadata.u32("general.file_type").and_then(file_type_name) {
        return name.to_owned();
    }
    let mut bytes = BTreeMap::new();
    for tensor in &model.tensors {
        *bytes.entry(tensor.ty.name()).or_insert(0_u128) += u128::from(tensor.bytes);
    }
    let most = bytes.into_iter().max_by_key(|&(_, bytes)| bytes);
    most.map_or_else(|| "unknown".to_owned(), |(name, _)| name.to_uppercase())
}

/// The names of `enum llama_ftype` in `llama.h`, less their prefix.
const fn file_type_name(id: u32) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        39 => "NVFP4",
        40 => "Q1_0",
        41 => "Q2_0",
        _ => return None,
    })
}

/// A number of parameters as Ollama prints it (`format.HumanNumber`): whole numbers without
/// decimals, others with one if they are billions and two if millions.
#[allow(clippy::cast_precision_loss)] // three digits are shown
pub(crate) fn human_count(count: u64) -> String {
    let scaled = |unit: u64, decimals: usize, suffix: &str| {
        let decimals = if count.is_multiple_of(unit) { 0 } else { decimals };
        format!("{:.decimals$}{suffix}", count as f64 / unit as f64)
    };
    match count {
        1_000_000_000.. => scaled(1_000_000_000, 1, "B"),
        1_000_000.. => scaled(1_000_000, 2, "M"),
        1_000.. => scaled(1_000, 0, "K"),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::human_count;

    #[test]
    fn counts_are_printed_as_ollama_does() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1_500, "2K"),
            (54_123_456, "54.12M"),
            (494_032_768, "494.03M"),
            (8_030_261_248, "8.0B"),
            (7_000_000_000, "7B"),
            (235_093_634_560, "235.1B"),
        ] {
            assert_eq!(human_count(count), text);
        }
    }
}
