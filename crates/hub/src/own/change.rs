//! Changing Hypura's own folder: making, copying and deleting models, and taking files in.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use hypura_gguf::Model;
use sha2::{Digest as _, Sha256};

use super::{manifests, names};
use crate::blobs::{self, Digest};
use crate::disk::{Opened, Partial, read_small, sync_folder, write_whole};
use crate::entry::{Entry, StoreKind};
use crate::error::{DiskError, StoreError};
use crate::manifest::{Blob, MANIFEST_BYTES_MAX, Manifest, ModelRef};
use crate::name::ModelName;
use crate::stores::Stores;

/// Bytes of a file that are taken in at once.
const CHUNK_BYTES: usize = 256 << 10;

impl Stores {
    /// Gives a model a name in Hypura's own folder, in place of one that had it before. Files that
    /// only that one needed are removed.
    ///
    /// # Errors
    /// [`StoreError`]: a bad name, one that differs from another only by case, or weights that
    /// aren't there. Nothing is changed then.
    pub fn create(&self, name: &str, manifest: &Manifest) -> Result<Entry, StoreError> {
        let own = self.own_folder()?;
        let name = ModelName::parse(name)?;
        let json = manifest.to_json()?;
        let lock = lock(own)?;
        check_case(own, &name)?;
        check_weights(own, manifest)?;
        let path = manifests(own).join(name.path());
        let before = read_manifest(&path);
        write_whole(&path, &json)?;
        if let Some(ModelRef::Blobs(old)) = before.map(|manifest| manifest.model) {
            remove_unused(own, &old)?;
        }
        drop(lock);
        Ok(self.find(&name.to_string())?)
    }

    /// Gives a model a second name, in Hypura's own folder. Its weights are not copied: a model of
    /// another store stays where it is and is named by its path.
    ///
    /// # Errors
    /// [`StoreError`], as [`create`](Self::create).
    pub fn copy(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let manifest = self.find(from)?.to_manifest();
        self.create(to, &manifest).map(|_| ())
    }

    /// Removes a model of Hypura's own folder, and its files if no other model needs them. A model
    /// that is running goes on with them.
    ///
    /// # Errors
    /// [`StoreError::Elsewhere`] says where a model of another store lies; that is for its owner to
    /// remove.
    pub fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (name, path) = match self.find(name) {
            Ok(entry) if entry.store != StoreKind::Own => return Err(elsewhere(entry)),
            // A model that can't be used any more can still be removed.
            found => {
                let asked = found.as_ref().map_or(name, |entry| entry.name.as_str());
                let asked = ModelName::parse(asked)?;
                let own = self.own_folder()?;
                match names(own).into_iter().find(|(name, _)| *name == asked) {
                    Some(named) => named,
                    None => return Err(found.map_or_else(StoreError::from, elsewhere)),
                }
            }
        };
        let own = self.own_folder()?;
        let _lock = lock(own)?;
        let manifest = read_manifest(&path);
        fs::remove_file(&path).map_err(DiskError::at(&path))?;
        sync_folder(&path).map_err(DiskError::at(&path))?;
        remove_empty(&manifests(own), &name);
        match manifest.map(|manifest| manifest.model) {
            Some(ModelRef::Blobs(blobs)) => remove_unused(own, &blobs),
            Some(ModelRef::File(_)) | None => Ok(()),
        }
    }

    /// Whether a file of this content is in Hypura's own folder, and its length in bytes.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`].
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let blob = Blob { sha256: digest.clone(), bytes: 0 };
        let path = path_of(self.own_folder()?, &blob);
        Ok(path.metadata().ok().map(|meta| Blob { bytes: meta.len(), ..blob }))
    }

    /// Takes a file into Hypura's own folder if it has this content. It belongs to no model until
    /// one is [created](Self::create) with it.
    ///
    /// # Errors
    /// [`StoreError::WrongDigest`], [`StoreError::TooLong`] beyond `bytes_max`, and what reading and
    /// writing say; nothing is left behind then.
    pub fn put_blob(
        &self,
        digest: &Digest,
        source: &mut dyn Read,
        bytes_max: u64,
    ) -> Result<Blob, StoreError> {
        let own = self.own_folder()?;
        let path = path_of(own, &Blob { sha256: digest.clone(), bytes: 0 });
        match Partial::try_open(&path)? {
            Opened::Done => {}
            Opened::Busy => {
                let source = std::io::ErrorKind::ResourceBusy.into();
                return Err(DiskError::Io { path, source }.into());
            }
            Opened::Ours(mut partial) => match take_in(&mut partial, digest, source, bytes_max) {
                Ok(()) => partial.publish()?,
                Err(error) => {
                    partial.discard();
                    return Err(error);
                }
            },
        }
        let bytes = path.metadata().map_err(DiskError::at(&path))?.len();
        Ok(Blob { sha256: digest.clone(), bytes })
    }

    pub(crate) fn own_folder(&self) -> Result<&Path, StoreError> {
        self.own.as_deref().ok_or(StoreError::ReadOnly)
    }
}

/// Held while manifests and blobs are changed. Readers need none: a manifest is renamed into place.
fn lock(own: &Path) -> Result<File, DiskError> {
    let path = own.join("lock");
    let lock = || {
        fs::create_dir_all(own)?;
        let file = File::options().write(true).create(true).truncate(false).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    lock().map_err(DiskError::at(&path))
}

/// On a file system that doesn't tell cases apart, two such names would be one.
pub(crate) fn check_case(own: &Path, name: &ModelName) -> Result<(), StoreError> {
    let other = names(own)
        .into_iter()
        .find(|(existing, _)| existing != name && existing.is_same_but_for_case(name));
    match other {
        Some((existing, _)) => Err(StoreError::CaseCollision {
            name: name.to_string(),
            existing: existing.to_string(),
        }),
        None => Ok(()),
    }
}

/// Checks that all files are there and, by their headers, one sound model.
fn check_weights(own: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let first = match &manifest.model {
        ModelRef::File(path) => path.clone(),
        ModelRef::Blobs(blobs) => {
            let paths = blobs::paths(own, blobs);
            for (path, blob) in paths.iter().zip(blobs) {
                if !path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == blob.bytes) {
                    return Err(StoreError::NoBlob { path: path.clone() });
                }
            }
            paths.into_iter().next().unwrap_or_default()
        }
    };
    Model::open(&first)?;
    Ok(())
}

/// Removes files of no model.
pub(crate) fn forget_blobs(own: &Path, blobs: &[Blob]) -> Result<(), StoreError> {
    let _lock = lock(own)?;
    remove_unused(own, blobs)
}

fn read_manifest(path: &Path) -> Option<Manifest> {
    Manifest::parse(&read_small(path, MANIFEST_BYTES_MAX).ok()??).ok()
}

fn path_of(own: &Path, blob: &Blob) -> PathBuf {
    blobs::paths(own, std::slice::from_ref(blob)).into_iter().next().unwrap_or_default()
}

/// Removes those of these files that no manifest names. If one can't be read nothing is removed: it
/// may be what needs them.
fn remove_unused(own: &Path, blobs: &[Blob]) -> Result<(), StoreError> {
    let mut used = HashSet::new();
    for (_, path) in names(own) {
        match read_manifest(&path).map(|manifest| manifest.model) {
            Some(ModelRef::Blobs(blobs)) => used.extend(blobs::paths(own, &blobs)),
            Some(ModelRef::File(path)) => {
                used.insert(path);
            }
            None => {
                tracing::warn!("{path:?} is damaged, so files that may be its own are kept");
                return Ok(());
            }
        }
    }
    for path in blobs::paths(own, blobs) {
        if !used.contains(&path) && path.exists() {
            fs::remove_file(&path).map_err(DiskError::at(&path))?;
            // The folder of a split set, when it is empty.
            let _ = path.parent().map(fs::remove_dir);
        }
    }
    Ok(())
}

/// Removes the folders of a name that nothing else is in.
fn remove_empty(manifests: &Path, name: &ModelName) {
    let path = manifests.join(name.path());
    for folder in path.ancestors().skip(1).take_while(|folder| *folder != manifests) {
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

fn elsewhere(entry: Entry) -> StoreError {
    let advice = match entry.store {
        StoreKind::Ollama => "hypura only reads it; remove it with ollama rm",
        StoreKind::HuggingFace => "hypura only reads it; remove it with hf cache delete",
        StoreKind::Folder | StoreKind::Own => "hypura only reads it; remove the file",
    };
    let path = entry.path().to_owned();
    StoreError::Elsewhere { store: entry.store.describe(), path, advice, name: entry.name }
}

fn take_in(
    partial: &mut Partial,
    digest: &Digest,
    source: &mut dyn Read,
    bytes_max: u64,
) -> Result<(), StoreError> {
    let path = partial.path().to_owned();
    partial.file.set_len(0).map_err(DiskError::at(&path))?;
    let (mut hasher, mut bytes, mut chunk) = (Sha256::new(), 0_u64, vec![0; CHUNK_BYTES]);
    loop {
        let count = source.read(&mut chunk).map_err(DiskError::at(&path))?;
        let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
        bytes = bytes.saturating_add(read.len() as u64);
        if bytes > bytes_max {
            return Err(StoreError::TooLong { what: "the file", limit: bytes_max });
        }
        hasher.update(read);
        partial.file.write_all(read).map_err(DiskError::at(&path))?;
    }
    let found = Digest::finish(hasher);
    if found != *digest {
        return Err(StoreError::WrongDigest { expected: digest.clone(), found });
    }
    Ok(())
}
