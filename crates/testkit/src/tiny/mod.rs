//! Tiny random models of many architectures.
//!
//! Each has what its architecture is there for (shared experts, latent attention, sinks, recurrent
//! layers, ...) at a few hundred KB to a few MB. Which keys and tensors an architecture needs is
//! written in `src/models/*.cpp` of the pinned llama.cpp.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hypura_testkit::tiny;
//! let recipe = tiny::find("qwen3moe").ok_or("no such recipe")?;
//! recipe.model(recipe.default_mix, 1)?.write("tiny.gguf".as_ref())?;
//! # Ok(())
//! # }
//! ```

mod build;
mod recipes;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hypura_gguf::{ExpertPart, GgmlType, Metadata, Role, WriteError, Writer, write_split};
use hypura_llama::quants::QuantError;

use build::{Build, Tensor};
use hypura_gguf::output::{NewFile, OutputError, partial_path};

/// A tiny model that can be made.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Recipe {
    /// Its name: that of the architecture, with a suffix where there are several of one.
    pub name: &'static str,
    /// What it is there for.
    pub summary: &'static str,
    /// The types that files of this architecture usually have.
    pub default_mix: Mix,
    build: fn(&mut Build),
}

/// All tiny models.
pub const RECIPES: &[Recipe] = recipes::RECIPES;

/// The tiny model of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

/// Which types a model's matrices have, as in the names of published files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)]
#[non_exhaustive]
pub enum Mix {
    F32,
    F16,
    Q8_0,
    Q4_0,
    /// All matrices `Q4_K`.
    Q4_K,
    /// As `Q4_K`, but V and down of every other layer are `Q6_K`: layers differ in size.
    Q4_K_M,
    /// Experts `MXFP4`, all else `Q8_0`.
    MXFP4,
}

impl Mix {
    /// Every mix.
    pub const ALL: &[Mix] =
        &[Mix::F32, Mix::F16, Mix::Q8_0, Mix::Q4_0, Mix::Q4_K, Mix::Q4_K_M, Mix::MXFP4];

    /// Its name, as in `Q4_K_M`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Mix::F32 => "F32",
            Mix::F16 => "F16",
            Mix::Q8_0 => "Q8_0",
            Mix::Q4_0 => "Q4_0",
            Mix::Q4_K => "Q4_K",
            Mix::Q4_K_M => "Q4_K_M",
            Mix::MXFP4 => "MXFP4",
        }
    }

    /// The mix of a name, in any case.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Mix> {
        Mix::ALL.iter().copied().find(|mix| mix.name().eq_ignore_ascii_case(name))
    }

    /// Whether widths must be multiples of 256.
    const fn needs_256(self) -> bool {
        matches!(self, Mix::Q4_K | Mix::Q4_K_M)
    }

    /// The type of a matrix with rows of `columns` values. Where those are no whole blocks the
    /// next type that fits is taken, as llama.cpp's quantizer does.
    fn type_of(self, name: &str, columns: u64) -> GgmlType {
        let (role, layer) = Role::of(name);
        let is_odd_layer = layer.is_some_and(|layer| !layer.is_multiple_of(2));
        let is_sensitive = role == Role::Expert(ExpertPart::Down)
            || name.ends_with("ffn_down.weight")
            || name.ends_with("attn_v.weight");
        let wanted = match self {
            Mix::F32 => GgmlType::F32,
            Mix::F16 => GgmlType::F16,
            Mix::Q4_0 => GgmlType::Q4_0,
            Mix::Q4_K_M if is_odd_layer && is_sensitive => GgmlType::Q6_K,
            Mix::Q4_K | Mix::Q4_K_M => GgmlType::Q4_K,
            Mix::MXFP4 if role.is_expert() => GgmlType::MXFP4,
            Mix::Q8_0 | Mix::MXFP4 => GgmlType::Q8_0,
        };
        let fits = |ty: &GgmlType| ty.row_bytes(columns).is_some();
        [wanted, GgmlType::Q8_0].into_iter().find(fits).unwrap_or(GgmlType::F32)
    }

    /// `general.file_type` (`enum llama_ftype` in `llama.h`).
    const fn file_type(self) -> u32 {
        match self {
            Mix::F32 => 0,
            Mix::F16 => 1,
            Mix::Q4_0 => 2,
            Mix::Q8_0 => 7,
            Mix::Q4_K => 14,
            Mix::Q4_K_M => 15,
            Mix::MXFP4 => 38,
        }
    }
}

/// Why a tiny model can't be made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum TinyError {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("{path:?} can't be written: {source}")]
    Write { path: PathBuf, source: WriteError },
    #[error("tensor {name:?} can't be made: {source}")]
    Quant { name: String, source: QuantError },
    #[error("a model of {n_tensors} tensors can be split into 1 to that many files, not {n_files}")]
    Split { n_tensors: usize, n_files: usize },
}

impl Recipe {
    /// Makes the model in memory; one seed gives one model.
    ///
    /// # Errors
    /// If ggml can't quantize a tensor.
    pub fn model(&self, mix: Mix, seed: u64) -> Result<TinyModel, TinyError> {
        let mut build = Build::new(self.name, mix, seed);
        (self.build)(&mut build);
        let (metadata, tensors) = build.finish()?;
        Ok(TinyModel { metadata, tensors })
    }
}

/// A tiny model in memory.
#[derive(Debug)]
pub struct TinyModel {
    metadata: Metadata,
    tensors: Vec<Tensor>,
}

impl TinyModel {
    /// Writes it as one file.
    ///
    /// # Errors
    /// If the file can't be written; nothing is left over then.
    pub fn write(&self, path: &Path) -> Result<(), TinyError> {
        let write_error = |source| TinyError::Write { path: path.to_owned(), source };
        let writer = self.writer().map_err(write_error)?;
        let mut new = NewFile::create(path, writer.data_bytes(), true, [])?;
        let mut out = io::BufWriter::new(new.file());
        writer.write(&mut out, |index, sink| self.put(index, sink)).map_err(write_error)?;
        out.flush().map_err(|error| write_error(error.into()))?;
        drop(out);
        Ok(new.publish()?)
    }

    /// Writes it as a split set, `PREFIX-00001-of-0000N.gguf` and so on, and returns the paths.
    ///
    /// # Errors
    /// If there are more files than tensors, or a file can't be written.
    pub fn write_split(&self, prefix: &Path, n_files: usize) -> Result<Vec<PathBuf>, TinyError> {
        let n_tensors = self.tensors.len();
        if n_files == 0 || n_files > n_tensors {
            return Err(TinyError::Split { n_tensors, n_files });
        }
        // The first files get one more where the tensors don't divide evenly.
        let each: Vec<usize> = (0..n_files)
            .map(|i| n_tensors / n_files + usize::from(i < n_tensors % n_files))
            .collect();
        let write_error = |source| TinyError::Write { path: prefix.to_owned(), source };
        let writer = self.writer().map_err(write_error)?;
        let partial = partial_path(prefix);
        let partials = write_split(&writer, &partial, &each, |index, sink| self.put(index, sink))
            .map_err(write_error)?;
        let mut paths = Vec::new();
        for (no, from) in (0u32..).zip(partials) {
            let count = u32::try_from(n_files).unwrap_or(u32::MAX);
            let to = hypura_gguf::split_path(prefix, no, count);
            fs::rename(&from, &to).map_err(|error| write_error(error.into()))?;
            paths.push(to);
        }
        Ok(paths)
    }

    /// Bytes of its weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum()
    }

    fn writer(&self) -> Result<Writer, WriteError> {
        let mut writer = Writer::new(self.metadata.clone(), hypura_gguf::DEFAULT_ALIGNMENT)?;
        for tensor in &self.tensors {
            writer.add_tensor(&tensor.name, tensor.ty, &tensor.dims)?;
        }
        Ok(writer)
    }

    fn put(&self, index: usize, sink: &mut dyn Write) -> io::Result<()> {
        let tensor = self.tensors.get(index).ok_or_else(|| io::Error::other("no such tensor"))?;
        sink.write_all(&tensor.bytes)
    }
}
