//! Random weights made directly in a quantized format.
//!
//! A quantized block is a few scales and many small integers. Random bytes are therefore random
//! weights once the scales are set to something sane, at the speed of the random generator; and
//! with scales of zero they are a weight of zero that takes as much room on a disk as any other.
//! The block layouts are those of `ggml-common.h`.

use hypura_gguf::GgmlType;
use hypura_llama::quants;

use crate::rng::Rng;

/// What random blocks are worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Worth {
    /// Exactly zero, whatever the quants are.
    Zero,
    /// Random with mean 0 and this root mean square.
    Rms(f32),
}

/// Why blocks can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The type has no scales of half precision, or they are not known here.
    #[error("weights of type {ty} can't be made up; use one of {}", supported_names())]
    Unsupported {
        /// The type asked for.
        ty: GgmlType,
    },
    /// The buffer is no whole number of blocks.
    #[error("{bytes} bytes are no whole number of blocks of {ty}")]
    Length {
        /// The buffer's length.
        bytes: usize,
        /// The type asked for.
        ty: GgmlType,
    },
}

/// Where the half-precision scales of a block lie, and what its random integers are worth.
struct Layout {
    ty: GgmlType,
    /// Offset in the block and multiple of the scale `d`. Types with a minimum have it chosen such
    /// that the mean is zero.
    scales: &'static [(usize, f32)],
    /// Root mean square of the weights when `d` is 1 and all else is uniformly random.
    unit_rms: f32,
}

/// Integers q are uniform in their range, the 6-bit scales and minima of K-quants in 0..64 and the
/// 8-bit scales of `Q6_K` in -128..128.
///
/// `Q4_K`: w = d·sc·q - dmin·m with E\[sc\] = E\[m\] = 31.5, E\[sc²\] = E\[m²\] = 1333.5,
/// E\[q\] = 7.5, E\[q²\] = 77.5: dmin = 7.5 d makes the mean zero and the variance
/// 1333.5·(77.5 + 7.5²) - 2·(31.5·7.5)². `Q5_K`: the same with 15.5 and 325.5.
const LAYOUTS: &[Layout] = &[
    Layout { ty: GgmlType::Q4_0, scales: &[(0, 1.0)], unit_rms: 4.637 },
    Layout { ty: GgmlType::Q5_0, scales: &[(0, 1.0)], unit_rms: 9.247 },
    Layout { ty: GgmlType::Q8_0, scales: &[(0, 1.0)], unit_rms: 73.90 },
    Layout { ty: GgmlType::Q4_K, scales: &[(0, 1.0), (2, 7.5)], unit_rms: 258.3 },
    Layout { ty: GgmlType::Q5_K, scales: &[(0, 1.0), (2, 15.5)], unit_rms: 526.9 },
    Layout { ty: GgmlType::Q6_K, scales: &[(208, 1.0)], unit_rms: 1365.0 },
];

/// The types that [`fill`] knows.
pub fn supported() -> impl Iterator<Item = GgmlType> {
    LAYOUTS.iter().map(|layout| layout.ty)
}

/// Whether [`fill`] knows a type.
#[must_use]
pub fn is_supported(ty: GgmlType) -> bool {
    supported().any(|known| known == ty)
}

/// Fills `out`, whole blocks of type `ty`, with random weights.
///
/// # Errors
/// If the type is not among [`supported`], or `out` is no whole number of blocks.
pub fn fill(ty: GgmlType, worth: Worth, rng: &mut Rng, out: &mut [u8]) -> Result<(), BlockError> {
    let layout =
        LAYOUTS.iter().find(|layout| layout.ty == ty).ok_or(BlockError::Unsupported { ty })?;
    let block_bytes = usize::try_from(ty.block_bytes()).unwrap_or(usize::MAX);
    if !out.len().is_multiple_of(block_bytes) {
        return Err(BlockError::Length { bytes: out.len(), ty });
    }
    let d = match worth {
        Worth::Zero => 0.0,
        Worth::Rms(rms) => rms / layout.unit_rms,
    };
    let scales = layout
        .scales
        .iter()
        .map(|&(offset, multiple)| Ok((offset, f16_bytes(d * multiple, ty)?)))
        .collect::<Result<Vec<_>, BlockError>>()?;
    rng.fill(out);
    let first_scale = layout.scales.first().map_or(0, |&(offset, _)| offset);
    for block in out.chunks_exact_mut(block_bytes) {
        // Integers such as -8..8 have a mean of -1/2. Were it the same in all blocks, every layer
        // would multiply the mean of its input by the root of its width, and soon nothing else
        // would be left: the scales of a block have a random sign.
        let random = block.get(first_scale).copied().unwrap_or(0);
        let sign = if worth == Worth::Zero { 0 } else { random & F16_SIGN };
        for (offset, [low, high]) in &scales {
            if let Some(scale) = block.get_mut(*offset..*offset + 2) {
                scale.copy_from_slice(&[*low, *high | sign]);
            }
        }
    }
    Ok(())
}

/// The root mean square of weights that keep the variance of what they multiply: 1 / sqrt(`n_in`).
#[allow(clippy::cast_precision_loss)] // a scale
pub(crate) fn inverse_root(n_in: u64) -> f32 {
    1.0 / (n_in.max(1) as f32).sqrt()
}

/// The sign in the higher byte of a number in half precision.
const F16_SIGN: u8 = 0x80;

/// A number in half precision, lower byte first, by ggml.
fn f16_bytes(value: f32, ty: GgmlType) -> Result<[u8; 2], BlockError> {
    quants::quantize_rows(GgmlType::F16.id(), &[value], 1)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(BlockError::Unsupported { ty })
}

fn supported_names() -> String {
    supported().map(GgmlType::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: usize = 4000;

    fn dequantized(ty: GgmlType, worth: Worth) -> Vec<f32> {
        let mut bytes = vec![0; BLOCKS * usize::try_from(ty.block_bytes()).unwrap()];
        fill(ty, worth, &mut Rng::new(1), &mut bytes).unwrap();
        let mut values = vec![f32::NAN; BLOCKS * usize::try_from(ty.block_elements()).unwrap()];
        quants::dequantize_row(ty.id(), &bytes, &mut values).unwrap();
        values
    }

    #[test]
    #[allow(clippy::cast_precision_loss)]
    fn weights_have_the_size_that_was_asked_for() {
        for ty in supported() {
            for rms in [0.5, 0.0156] {
                let values = dequantized(ty, Worth::Rms(rms));
                let n = values.len() as f64;
                let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
                let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
                let ratio = square.sqrt() / f64::from(rms);
                assert!((ratio - 1.0).abs() < 0.02, "{ty} at {rms}: {ratio}");
                assert!(mean.abs() < 0.01 * f64::from(rms), "{ty} at {rms}: mean {mean}");
            }
        }
    }

    #[test]
    fn zero_weights_are_zero_and_no_page_of_them_is() {
        for ty in supported() {
            assert!(dequantized(ty, Worth::Zero).iter().all(|&v| v == 0.0), "{ty}");
            let mut bytes = vec![0; BLOCKS * usize::try_from(ty.block_bytes()).unwrap()];
            fill(ty, Worth::Zero, &mut Rng::new(1), &mut bytes).unwrap();
            assert!(bytes.chunks(4096).all(|page| page.iter().any(|&b| b != 0)), "{ty}");
        }
    }

    #[test]
    fn what_can_not_be_made_up_is_refused() {
        let mut rng = Rng::new(1);
        let message = fill(GgmlType::F32, Worth::Zero, &mut rng, &mut [0; 4]).unwrap_err();
        assert!(message.to_string().contains("F32 can't be made up; use one of Q4_0, "));
        let short = fill(GgmlType::Q8_0, Worth::Zero, &mut rng, &mut [0; 33]).unwrap_err();
        assert_eq!(short, BlockError::Length { bytes: 33, ty: GgmlType::Q8_0 });
    }
}
