//! A small fast random generator, the same on every platform.

/// wyrand: one multiplication per 8 bytes, good enough for weights and far faster than a disk.
///
/// The algorithm is Wang Yi's, public domain: <https://github.com/wangyi-fudan/wyhash>.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

const INCREMENT: u64 = 0xa076_1d64_78bd_642f;
const MIX: u64 = 0xe703_7ed1_a0b4_28db;

impl Rng {
    /// The generator of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Rng {
        Rng { state: seed }
    }

    /// One of many independent generators of a seed, so that parts can be made in any order.
    #[must_use]
    pub fn stream(seed: u64, part: u64) -> Rng {
        let mut rng = Rng::new(seed ^ Rng::new(part).next_u64());
        rng.next_u64();
        rng
    }

    /// 64 random bits.
    #[allow(clippy::cast_possible_truncation)] // both halves of the product are used
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(INCREMENT);
        let product = u128::from(self.state) * u128::from(self.state ^ MIX);
        (product >> 64) as u64 ^ product as u64
    }

    /// A number below `limit`, which is not 0; the bias is below 2^-32 for small limits.
    pub fn below(&mut self, limit: u32) -> u32 {
        let product = u64::from(limit) * (self.next_u64() >> 32);
        u32::try_from(product >> 32).unwrap_or(0)
    }

    /// A number from 0 to 1, without 1.
    #[allow(clippy::cast_precision_loss)] // 24 bits fit an f32 exactly
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// About normal with mean 0 and variance 1: the sum of four 16-bit numbers (Irwin-Hall), which
    /// needs no logarithm and is therefore the same bits everywhere.
    #[allow(clippy::cast_precision_loss)] // at most 18 bits
    pub fn normal(&mut self) -> f32 {
        let bits = self.next_u64();
        let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
        // Each term has mean (2^16 - 1) / 2 and variance 2^32 / 12.
        (sum as f32 - 131_070.0) * (3f32.sqrt() / 65_536.0)
    }

    /// Fills a buffer with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let mut chunks = out.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes());
        }
        let last = self.next_u64().to_le_bytes();
        for (byte, random) in chunks.into_remainder().iter_mut().zip(last) {
            *byte = random;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_the_moments_it_claims() {
        let mut rng = Rng::new(1);
        let values: Vec<f64> = (0..200_000).map(|_| f64::from(rng.normal())).collect();
        let mean = values.iter().sum::<f64>() / 200_000.0;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / 200_000.0;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn a_seed_gives_one_sequence_and_its_streams_differ() {
        let draw = |mut rng: Rng| (0..4).map(|_| rng.next_u64()).collect::<Vec<_>>();
        assert_eq!(draw(Rng::new(7)), draw(Rng::new(7)));
        assert_eq!(draw(Rng::stream(7, 3)), draw(Rng::stream(7, 3)));
        let mut first: Vec<u64> = (0..1000).map(|part| Rng::stream(7, part).next_u64()).collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 1000);
    }

    #[test]
    fn every_value_below_the_limit_occurs() {
        let mut rng = Rng::new(2);
        let mut seen = [0u32; 10];
        (0..10_000).for_each(|_| seen[rng.below(10) as usize] += 1);
        assert!(seen.iter().all(|&n| (900..1100).contains(&n)), "{seen:?}");
    }

    #[test]
    fn fill_reaches_every_byte_of_odd_lengths() {
        for len in 0..40 {
            let mut seen = vec![0u8; len];
            for seed in 0..16 {
                let mut bytes = vec![0u8; len];
                Rng::new(seed).fill(&mut bytes);
                seen.iter_mut().zip(bytes).for_each(|(s, b)| *s |= b);
            }
            assert!(seen.iter().all(|&b| b != 0), "{len}: {seen:?}");
        }
    }
}
