//! The commands, one file each.

mod chat;
pub(crate) mod estimate;
pub(crate) mod inspect;
pub(crate) mod profile;
pub(crate) mod run;

use std::path::PathBuf;

use crate::args::ModelArgs;

/// The file of the model that was named.
pub(crate) fn model_path(args: &ModelArgs) -> anyhow::Result<PathBuf> {
    Ok(crate::home::stores(args.models_dir.as_ref()).resolve(&args.model)?)
}
