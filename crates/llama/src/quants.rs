//! Quantizing and dequantizing rows, by ggml.

use llama_cpp_sys_2 as sys;

/// Why a row could not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// ggml has no type of this number, or can't convert it.
    #[error("ggml can't convert tensors of type {ty}")]
    Unsupported {
        /// ggml's number of the type.
        ty: u32,
    },
    /// The data is no whole number of rows or blocks.
    #[error("{given} values or bytes are no whole number of rows ({wanted})")]
    Shape {
        /// What was passed.
        given: usize,
        /// What a row needs.
        wanted: usize,
    },
}

/// Quantizes `data` (rows of `n_per_row` values) to the ggml type `ty`, without importance matrix.
///
/// # Errors
/// When the type is unknown or the data is no whole number of rows.
pub fn quantize_rows(ty: u32, data: &[f32], n_per_row: usize) -> Result<Vec<u8>, QuantError> {
    check_type(ty)?;
    // SAFETY: `ty` is one of ggml's types.
    let block = usize::try_from(unsafe { sys::ggml_blck_size(ty) }).unwrap_or(0);
    if n_per_row == 0
        || block == 0
        || !data.len().is_multiple_of(n_per_row)
        || !n_per_row.is_multiple_of(block)
    {
        return Err(QuantError::Shape { given: data.len(), wanted: n_per_row });
    }
    let rows = i64::try_from(data.len() / n_per_row).unwrap_or(0);
    let row = i64::try_from(n_per_row).unwrap_or(0);
    // SAFETY: as above; `row` is a multiple of the block length.
    let row_bytes = unsafe { sys::ggml_row_size(ty, row) };
    let mut out = vec![0u8; row_bytes * (data.len() / n_per_row)];
    // SAFETY: `out` has room for `rows` rows of `row_bytes`, `data` holds `rows * row` values.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            ty,
            data.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            rows,
            row,
            std::ptr::null(),
        )
    };
    if written == out.len() { Ok(out) } else { Err(QuantError::Unsupported { ty }) }
}

/// Dequantizes whole blocks of type `ty` into `out`, which must have exactly their length.
///
/// # Errors
/// When the type is unknown, or `bytes` and `out` do not belong together.
pub fn dequantize_row(ty: u32, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    check_type(ty)?;
    // SAFETY: `ty` is one of ggml's types.
    let (block, row_bytes) = unsafe {
        let n = i64::try_from(out.len()).unwrap_or(0);
        (usize::try_from(sys::ggml_blck_size(ty)).unwrap_or(0), sys::ggml_row_size(ty, n))
    };
    if block == 0 || !out.len().is_multiple_of(block) || row_bytes != bytes.len() {
        return Err(QuantError::Shape { given: bytes.len(), wanted: row_bytes });
    }
    if ty == sys::GGML_TYPE_F32 {
        for (value, raw) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        }
        return Ok(());
    }
    // SAFETY: the traits of a valid type are static.
    let Some(to_float) = (unsafe { (*sys::ggml_get_type_traits(ty)).to_float }) else {
        return Err(QuantError::Unsupported { ty });
    };
    let n = i64::try_from(out.len()).unwrap_or(0);
    // SAFETY: `bytes` holds `n` values of this type and `out` has room for `n` floats. The
    // block structures of ggml hold 16-bit fields at most: a copy gives the alignment.
    unsafe {
        if bytes.as_ptr().align_offset(8) == 0 {
            to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), n);
        } else {
            let mut words = vec![0u64; bytes.len().div_ceil(8)];
            let copy = words.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
            to_float(copy.cast(), out.as_mut_ptr(), n);
        }
    }
    Ok(())
}

fn check_type(ty: u32) -> Result<(), QuantError> {
    if ty >= sys::GGML_TYPE_COUNT {
        return Err(QuantError::Unsupported { ty });
    }
    // SAFETY: `ty` is below the number of types; removed types have an empty size.
    let known = unsafe { sys::ggml_type_size(ty) > 0 };
    // The CPU tables (F16 to F32 among them) are filled by the first ggml_init.
    crate::init();
    if known { Ok(()) } else { Err(QuantError::Unsupported { ty }) }
}
