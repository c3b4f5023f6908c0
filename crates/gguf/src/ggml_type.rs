//! The tensor types of ggml: their ids in a file, names, and block geometry.

use std::fmt;

/// Defines the enum and everything known of each type from one table, so that they can't diverge.
macro_rules! ggml_types {
    ($($variant:ident = $id:literal, $name:literal, $elements:literal, $bytes:literal;)*) => {
        /// The type of a tensor's elements (`enum ggml_type` in `ggml.h`).
        ///
        /// Rows are stored in blocks: [`block_elements`](Self::block_elements) elements take
        /// [`block_bytes`](Self::block_bytes) bytes (`ggml-common.h`).
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum GgmlType {
            $($variant = $id,)*
        }

        impl GgmlType {
            /// Every type that a file may hold, in the order of ids.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The type with this id in a file.
            ///
            /// # Errors
            /// Ids that ggml has removed, with what to do instead, and ids that it never had.
            pub fn from_id(id: u32) -> Result<Self, GgmlTypeError> {
                match id {
                    $($id => Ok(Self::$variant),)*
                    _ => Err(removed_type(id)
                        .map_or(GgmlTypeError::Unknown { id }, |(name, instead)| {
                            GgmlTypeError::Removed { id, name, instead }
                        })),
                }
            }

            /// The id in a file.
            #[must_use]
            pub const fn id(self) -> u32 {
                self as u32
            }

            /// The name that users know, as in `Q4_K` (ggml's own, in upper case).
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Elements of one block.
            #[must_use]
            pub const fn block_elements(self) -> u64 {
                match self {
                    $(Self::$variant => $elements,)*
                }
            }

            /// Bytes of one block.
            #[must_use]
            pub const fn block_bytes(self) -> u64 {
                match self {
                    $(Self::$variant => $bytes,)*
                }
            }
        }
    };
}

ggml_types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl GgmlType {
    /// Bytes of a row of `ne0` elements; `None` if `ne0` is no whole number of blocks or the
    /// product overflows.
    #[must_use]
    pub const fn row_bytes(self, ne0: u64) -> Option<u64> {
        if !ne0.is_multiple_of(self.block_elements()) {
            return None;
        }
        (ne0 / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor with these dimensions, `dims[0]` being the row; `None` as in
    /// [`row_bytes`](Self::row_bytes).
    #[must_use]
    pub fn tensor_bytes(self, dims: [u64; 4]) -> Option<u64> {
        let [ne0, ne1, ne2, ne3] = dims;
        // The elements must be countable too, as ggml counts them in an i64.
        let elements = ne0.checked_mul(ne1)?.checked_mul(ne2)?.checked_mul(ne3)?;
        i64::try_from(elements).ok()?;
        self.row_bytes(ne0)?.checked_mul(ne1)?.checked_mul(ne2)?.checked_mul(ne3)
    }

    /// Bits that one element takes on average.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // block sizes are small integers
    pub fn bits_per_element(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_elements() as f64
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why an id names no tensor type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgmlTypeError {
    /// ggml knew this type once.
    #[error("tensor type {name} (id {id}) was removed from ggml; {instead}")]
    Removed {
        /// The id in the file.
        id: u32,
        /// What it was called.
        name: &'static str,
        /// What a user can do.
        instead: &'static str,
    },
    /// ggml of the pinned version does not know this type.
    #[error(
        "unknown tensor type id {id}; the file may be damaged or made for a newer version of llama.cpp"
    )]
    Unknown {
        /// The id in the file.
        id: u32,
    },
}

/// Name and remedy of the ids that were once in use (the comments in `enum ggml_type`).
const fn removed_type(id: u32) -> Option<(&'static str, &'static str)> {
    const QUANTIZE_AGAIN: &str = "quantize the model again";
    const USE_Q4_0: &str = "use the Q4_0 file of the model, which is repacked at load time";
    const USE_IQ4_NL: &str = "use the IQ4_NL file of the model, which is repacked at load time";
    Some(match id {
        4 => ("Q4_2", QUANTIZE_AGAIN),
        5 => ("Q4_3", QUANTIZE_AGAIN),
        31 => ("Q4_0_4_4", USE_Q4_0),
        32 => ("Q4_0_4_8", USE_Q4_0),
        33 => ("Q4_0_8_8", USE_Q4_0),
        36 => ("IQ4_NL_4_4", USE_IQ4_NL),
        37 => ("IQ4_NL_4_8", USE_IQ4_NL),
        38 => ("IQ4_NL_8_8", USE_IQ4_NL),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes as sums of the structs' fields, as `ggml-common.h` asserts them.
    #[test]
    fn block_sizes_are_those_of_ggml_common() {
        const HALF: u64 = 2;
        const QK: u64 = 256;
        let check = |ty: GgmlType, elements: u64, bytes: u64| {
            assert_eq!((ty.block_elements(), ty.block_bytes()), (elements, bytes), "{ty}");
        };
        check(GgmlType::Q1_0, 128, HALF + 128 / 8);
        check(GgmlType::Q2_0, 64, HALF + 64 / 4);
        check(GgmlType::Q4_0, 32, HALF + 16);
        check(GgmlType::Q4_1, 32, 2 * HALF + 16);
        check(GgmlType::Q5_0, 32, HALF + 4 + 16);
        check(GgmlType::Q5_1, 32, 2 * HALF + 4 + 16);
        check(GgmlType::Q8_0, 32, HALF + 32);
        check(GgmlType::Q8_1, 32, 2 * HALF + 32);
        check(GgmlType::MXFP4, 32, 1 + 16);
        check(GgmlType::NVFP4, 64, 64 / 16 + 32);
        check(GgmlType::TQ1_0, QK, HALF + QK / 64 + (QK - 4 * QK / 64) / 5);
        check(GgmlType::TQ2_0, QK, HALF + QK / 4);
        check(GgmlType::Q2_K, QK, 2 * HALF + QK / 16 + QK / 4);
        check(GgmlType::Q3_K, QK, HALF + QK / 4 + QK / 8 + 12);
        check(GgmlType::Q4_K, QK, 2 * HALF + 12 + QK / 2);
        check(GgmlType::Q5_K, QK, 2 * HALF + 12 + QK / 2 + QK / 8);
        check(GgmlType::Q6_K, QK, HALF + QK / 16 + 3 * QK / 4);
        check(GgmlType::Q8_K, QK, 4 + QK + QK / 16 * 2);
        check(GgmlType::IQ2_XXS, QK, HALF + QK / 8 * 2);
        check(GgmlType::IQ2_XS, QK, HALF + QK / 8 * 2 + QK / 32);
        check(GgmlType::IQ2_S, QK, HALF + QK / 4 + QK / 16);
        check(GgmlType::IQ3_XXS, QK, HALF + 3 * (QK / 8));
        check(GgmlType::IQ3_S, QK, HALF + 13 * (QK / 32) + QK / 64);
        check(GgmlType::IQ1_S, QK, HALF + QK / 8 + QK / 16);
        check(GgmlType::IQ1_M, QK, QK / 8 + QK / 16 + QK / 32);
        check(GgmlType::IQ4_NL, 32, HALF + 16);
        check(GgmlType::IQ4_XS, QK, HALF + 2 + QK / 64 + QK / 2);
    }

    #[test]
    fn every_id_up_to_the_count_is_a_type_or_removed() {
        let mut known = Vec::new();
        for id in 0..43 {
            match GgmlType::from_id(id) {
                Ok(ty) => {
                    assert_eq!(ty.id(), id);
                    known.push(ty);
                }
                Err(err) => assert!(matches!(err, GgmlTypeError::Removed { .. }), "{err}"),
            }
        }
        assert_eq!(known, GgmlType::ALL);
        assert_eq!(GgmlType::from_id(43), Err(GgmlTypeError::Unknown { id: 43 }));
    }

    #[test]
    fn sizes_refuse_partial_blocks_and_overflow() {
        assert_eq!(GgmlType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4_K.row_bytes(100), None);
        assert_eq!(GgmlType::F64.row_bytes(u64::MAX), None);
        assert_eq!(GgmlType::F32.tensor_bytes([3, 5, 2, 1]), Some(120));
        assert_eq!(GgmlType::F32.tensor_bytes([0, 5, 2, 1]), Some(0));
        assert_eq!(GgmlType::Q1_0.tensor_bytes([128, 1 << 60, 1, 1]), None);
    }
}
