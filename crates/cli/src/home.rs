//! Where Hypura keeps things, and where it finds models.

use std::path::PathBuf;

use etcetera::BaseStrategy;
use hypura_engine::Stores;

fn from_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// What can be made again: measurements. `HYPURA_HOME/cache`, or the platform's cache folder.
pub(crate) fn cache() -> Option<PathBuf> {
    from_env("HYPURA_HOME")
        .map(|home| home.join("cache"))
        .or_else(|| Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("hypura")))
}

/// Attention state.
pub(crate) fn kv() -> Option<PathBuf> {
    cache().map(|cache| cache.join("kv"))
}

/// Conversations.
pub(crate) fn sessions() -> Option<PathBuf> {
    data().map(|data| data.join("sessions"))
}

/// What can't: models, histories, conversations. `HYPURA_HOME`, or the platform's data folder.
pub(crate) fn data() -> Option<PathBuf> {
    from_env("HYPURA_HOME")
        .or_else(|| Some(etcetera::choose_base_strategy().ok()?.data_dir().join("hypura")))
}

/// The stores that model names are looked up in.
pub(crate) fn stores(models_dir: Option<&PathBuf>) -> Stores {
    let user = etcetera::home_dir().ok();
    let own = data().map(|data| data.join("models"));
    let mut folders: Vec<PathBuf> = own.iter().cloned().collect();
    folders.extend(models_dir.cloned());
    let hugging_face = from_env("HF_HUB_CACHE")
        .or_else(|| from_env("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| user.as_ref().map(|user| user.join(".cache/huggingface/hub")));
    let ollama =
        from_env("OLLAMA_MODELS").or_else(|| user.as_ref().map(|user| user.join(".ollama/models")));
    Stores { folders, ollama, hugging_face, own }
}
