//! The profile on disk: one JSON file per machine, in a cache folder.
//!
//! Only what takes time to measure is taken from it: drives, and the speed of memory. A file that
//! is missing, damaged, of another version or of another machine is a miss. It is replaced as a
//! whole (temporary file, rename), so that whoever reads it sees the old one or the new one.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hypura_io::File;

use crate::compute;
use crate::host::{Host, ProbeError, System};
use crate::storage::{Effort, Storage, StorageError, probe_storage};
use crate::{
    Compute, ComputeStep, Cpu, Device, Memory, MemoryCopy, Profile, VERSION, probe_cpu,
    probe_memory, probe_memory_copy,
};

/// Measurements older than this are repeated: 30 days, in seconds.
pub const AGE_MAX_S: u64 = 30 * 24 * 3600;

/// Quick measurements of a drive, which catch a bad moment more easily and cost half a second, are
/// repeated when older than this: a day, in seconds.
pub const AGE_QUICK_MAX_S: u64 = 24 * 3600;

/// Drives kept in a profile at most; the oldest measurement goes first.
const STORAGE_MAX: usize = 32;

/// Largest profile that is read, in bytes.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

/// What a profile is wanted for.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// Where profiles are kept; made if it doesn't exist.
    pub cache_dir: &'a Path,
    /// The file whose drive is to be measured. Without one, only what is cached is known of drives.
    pub model_file: Option<&'a Path>,
    /// What the compute library found; goes into the profile as it is.
    pub devices: Vec<Device>,
    /// A cached measurement of less effort is repeated.
    pub effort: Effort,
    /// Measures again even if it is cached.
    pub refresh: bool,
    /// Now, in seconds since 1970.
    pub now_unix_s: u64,
}

/// A profile, and how it was come by.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded {
    pub profile: Profile,
    /// The drive of the query's file, which is also in the profile if it was measured; `None` if
    /// the query had no file.
    pub storage: Option<Result<Storage, StorageError>>,
    /// Whether all measurements came from the cache.
    pub from_cache: bool,
    /// Whether new measurements were kept for the next time. Nothing depends on it but time.
    pub saved: Result<(), SaveError>,
}

/// A profile can't be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    #[error("can't keep the profile in {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The profile of this machine: processor and memory as they are now, drives and memory speed from
/// the cache where they are recent, of the same machine and drive, and measured with the effort
/// asked for; measured now otherwise.
///
/// # Errors
/// [`ProbeError`] if the system doesn't tell about processor or memory, or has none left. That a drive can't be
/// measured, or the profile can't be saved, is told in [`Loaded`].
pub fn load_or_probe(query: &Query<'_>) -> Result<Loaded, ProbeError> {
    load_or_measure(query, &Meters)
}

/// What takes time to measure; replaced in tests.
trait Measure {
    fn storage(
        &self,
        file: &Path,
        effort: Effort,
        now_unix_s: u64,
    ) -> Result<Storage, StorageError>;
    fn memory_copy(&self, now_unix_s: u64) -> Result<MemoryCopy, ProbeError>;
}

/// Measures this machine.
struct Meters;

impl Measure for Meters {
    fn storage(
        &self,
        file: &Path,
        effort: Effort,
        now_unix_s: u64,
    ) -> Result<Storage, StorageError> {
        probe_storage(file, effort, now_unix_s)
    }

    fn memory_copy(&self, now_unix_s: u64) -> Result<MemoryCopy, ProbeError> {
        Ok(probe_memory_copy(now_unix_s)?)
    }
}

fn load_or_measure(query: &Query<'_>, measure: &dyn Measure) -> Result<Loaded, ProbeError> {
    let (cpu, memory) = (probe_cpu()?, probe_memory()?);
    let hostname = System.read(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
    let machine = machine(&cpu, &memory, hostname.trim());
    let path = file_of(query.cache_dir, &machine);
    let cached = read(&path, &machine);
    let mut cached_copy = None;
    let mut cached_storage = Vec::new();
    let (mut compute, mut compute_steps, mut gpus) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(cached) = cached {
        cached_storage = cached.storage;
        cached_copy = Some(cached.memory_copy);
        (compute, compute_steps) = (cached.compute, cached.compute_steps);
        gpus = cached.gpus;
        let is_recent = |taken_unix_s| is_recent(taken_unix_s, query.now_unix_s, AGE_MAX_S);
        compute.retain(|measured| is_recent(measured.taken_unix_s));
        compute_steps.retain(|measured| is_recent(measured.taken_unix_s));
    }
    let mut from_cache = true;

    let is_recent = |taken_unix_s, age_max_s| {
        !query.refresh && is_recent(taken_unix_s, query.now_unix_s, age_max_s)
    };
    let recent_copy = cached_copy.filter(|copy| is_recent(copy.taken_unix_s, AGE_MAX_S));
    let memory_copy = match recent_copy {
        Some(copy) => copy,
        None => {
            from_cache = false;
            measure.memory_copy(query.now_unix_s)?
        }
    };

    let mut profile = Profile {
        version: VERSION,
        taken_unix_s: query.now_unix_s,
        machine,
        cpu,
        memory,
        devices: query.devices.clone(),
        storage: cached_storage,
        memory_copy,
        compute,
        compute_steps,
        gpus,
    };
    let storage = query.model_file.map(|file| {
        let known = profile.storage_of(file).filter(|known| {
            let age_max_s = match known.effort {
                Effort::Quick => AGE_QUICK_MAX_S,
                Effort::Full => AGE_MAX_S,
            };
            is_recent(known.taken_unix_s, age_max_s)
                && known.effort >= query.effort
                && known.direct == File::open(file).is_ok_and(|file| file.is_direct())
        });
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let measured = measure.storage(file, query.effort, query.now_unix_s)?;
        // A file too small to measure says nothing about the drive that others would want to know.
        if !measured.points.is_empty() {
            from_cache = false;
            remember(&mut profile.storage, measured.clone());
        }
        Ok(measured)
    });
    let saved = if from_cache { Ok(()) } else { save(&profile, &path) };
    Ok(Loaded { profile, storage, from_cache, saved })
}

/// Adds measurements of computing to a profile of this machine, and keeps them with it in
/// `cache_dir` for the next time.
///
/// # Errors
/// [`SaveError`]; the profile has the measurements all the same.
pub fn keep_compute(
    cache_dir: &Path,
    profile: &mut Profile,
    new: Vec<Compute>,
    step: Option<ComputeStep>,
) -> Result<(), SaveError> {
    for measured in new {
        compute::remember(&mut profile.compute, measured);
    }
    if let Some(step) = step {
        compute::remember_step(&mut profile.compute_steps, step);
    }
    save(profile, &file_of(cache_dir, &profile.machine))
}

/// Adds a measurement of a GPU, likewise.
///
/// # Errors
/// [`SaveError`]; the profile has the measurement all the same.
pub fn keep_gpu(
    cache_dir: &Path,
    profile: &mut Profile,
    new: crate::GpuSpeed,
) -> Result<(), SaveError> {
    crate::gpu::remember(&mut profile.gpus, new);
    save(profile, &file_of(cache_dir, &profile.machine))
}

/// Where the profile of a machine is kept.
fn file_of(cache_dir: &Path, machine: &str) -> PathBuf {
    cache_dir.join(format!("profile-{machine}.json"))
}

/// Puts a measurement in the place of the one of the same drive.
fn remember(all: &mut Vec<Storage>, new: Storage) {
    all.retain(|old| old.drive != new.drive);
    all.push(new);
    while all.len() > STORAGE_MAX {
        let oldest = all.iter().enumerate().min_by_key(|(_, storage)| storage.taken_unix_s);
        let Some(oldest) = oldest.map(|(index, _)| index) else { return };
        all.remove(oldest);
    }
}

/// Whether a measurement can still be used. One from the future was taken with a wrong clock.
fn is_recent(taken_unix_s: u64, now_unix_s: u64, age_max_s: u64) -> bool {
    now_unix_s.checked_sub(taken_unix_s).is_some_and(|age_s| age_s <= age_max_s)
}

/// Tells machines apart, without giving a name or a serial number away: profiles are shown around.
fn machine(cpu: &Cpu, memory: &Memory, hostname: &str) -> String {
    // The kernel keeps a little for itself, not always the same.
    let memory_gib = memory.total_bytes.div_ceil(1 << 30);
    let text = format!("{}\n{}\n{memory_gib}\n{hostname}", cpu.model, cpu.cores_online);
    // FNV-1a of 64 bits (Fowler, Noll and Vo): the same in every version of this program.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The profile in a file; `None` if there is none that can be used for this machine.
fn read(path: &Path, machine: &str) -> Option<Profile> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Ok(metadata) if metadata.len() > PROFILE_BYTES_MAX => {
            tracing::warn!(path = %path.display(), "ignoring a cached profile: it is too large");
            return None;
        }
        _ => {}
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    match text.and_then(|text| Profile::from_json(&text).map_err(|error| error.to_string())) {
        Ok(profile) => (profile.machine == machine).then_some(profile),
        Err(error) => {
            tracing::warn!(path = %path.display(), "ignoring a cached profile: {error}");
            None
        }
    }
}

fn save(profile: &Profile, path: &Path) -> Result<(), SaveError> {
    let write = replace(path, profile.to_json().as_bytes());
    write.map_err(|source| SaveError::Io { path: path.to_owned(), source })
}

/// Writes a whole file in the place of the one that is there, in a folder that is made if needed.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::mount::Drive;
    use crate::{DeviceKind, ParseError, Point};

    const NOW: u64 = 1_800_000_000;

    /// A cache folder that doesn't exist yet, and a model file on a drive whose bandwidth is one
    /// byte per second more at each measurement.
    struct Place {
        folder: tempfile::TempDir,
        cache_dir: PathBuf,
        model_file: PathBuf,
        measured: Cell<u32>,
    }

    impl Measure for Place {
        fn storage(
            &self,
            file: &Path,
            effort: Effort,
            taken_unix_s: u64,
        ) -> Result<Storage, StorageError> {
            self.measured.set(self.measured.get() + 1);
            let path = file.to_owned();
            let drive = Drive::of(file).map_err(|source| StorageError::Drive { path, source })?;
            let file = File::open(file)?;
            let bytes_per_s = f64::from(self.measured.get()) + 0.1;
            let point = Point { read_bytes: 4096, depth: 1, bytes_per_s };
            Ok(Storage {
                drive,
                direct: file.is_direct(),
                direct_refused: file.direct_refused().map(str::to_owned),
                file_bytes: file.len(),
                effort,
                points: if file.is_empty() { Vec::new() } else { vec![point] },
                best: None,
                small_read: None,
                taken_unix_s,
                note: None,
            })
        }

        fn memory_copy(&self, taken_unix_s: u64) -> Result<MemoryCopy, ProbeError> {
            Ok(MemoryCopy { bytes_per_s: 1e10 / 3.0, taken_unix_s })
        }
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().expect("a folder");
            let (cache_dir, model_file) =
                (folder.path().join("deep/cache"), folder.path().join("model"));
            fs::write(&model_file, "weights").expect("written");
            Place { folder, cache_dir, model_file, measured: Cell::new(0) }
        }

        fn load<'a>(&'a self, change: impl FnOnce(&mut Query<'a>)) -> Loaded {
            let mut query = Query {
                cache_dir: &self.cache_dir,
                model_file: Some(&self.model_file),
                devices: Vec::new(),
                effort: Effort::Quick,
                refresh: false,
                now_unix_s: NOW,
            };
            change(&mut query);
            load_or_measure(&query, self).expect("a profile")
        }

        /// Whether a query is answered from the cache; what isn't is kept for the next time.
        fn is_hit<'a>(&'a self, change: impl FnOnce(&mut Query<'a>)) -> bool {
            let before = self.measured.get();
            let loaded = self.load(change);
            loaded.saved.as_ref().expect("saved, or nothing to save");
            assert_eq!(loaded.profile.storage_of(&self.model_file), Some(storage(&loaded)));
            assert_eq!(loaded.from_cache, self.measured.get() == before);
            loaded.from_cache
        }

        /// The one file in the cache.
        fn file(&self) -> PathBuf {
            let mut files: Vec<_> = fs::read_dir(&self.cache_dir)
                .expect("a folder")
                .map(|entry| entry.expect("an entry").path())
                .collect();
            assert_eq!(files.len(), 1, "one profile, no temporary file: {files:?}");
            files.remove(0)
        }
    }

    fn storage(loaded: &Loaded) -> &Storage {
        let storage = loaded.storage.as_ref().expect("asked for");
        storage.as_ref().expect("measured")
    }

    #[test]
    fn measures_once_and_then_remembers() {
        let place = Place::new();
        assert!(!place.is_hit(|_| {}));
        assert!(place.is_hit(|_| {}));
        assert!(place.is_hit(|query| query.now_unix_s = NOW + AGE_QUICK_MAX_S));
        // The rest is as new as the query.
        let device = Device {
            name: "CUDA0".to_owned(),
            description: "a GPU".to_owned(),
            kind: DeviceKind::Gpu,
            memory_total_bytes: 2,
            memory_free_bytes: 1,
        };
        let loaded = place.load(|query| {
            query.devices = vec![device.clone()];
            query.now_unix_s = NOW + 5;
        });
        assert_eq!(loaded.profile.devices, [device]);
        assert_eq!(loaded.profile.taken_unix_s, NOW + 5);
        assert_eq!(storage(&loaded).taken_unix_s, NOW);
        assert_eq!(loaded.profile.memory_copy.taken_unix_s, NOW);
    }

    #[test]
    fn measures_again_when_told_or_too_old_or_from_the_future() {
        let changes: [fn(&mut Query<'_>); 4] = [
            |query| query.refresh = true,
            |query| query.now_unix_s = NOW + AGE_QUICK_MAX_S + 1,
            |query| query.now_unix_s = NOW - 1,
            |query| query.effort = Effort::Full,
        ];
        for change in changes {
            let place = Place::new();
            place.load(|_| {});
            assert!(!place.is_hit(change));
        }
    }

    #[test]
    fn more_effort_than_asked_for_is_a_hit() {
        let place = Place::new();
        place.load(|query| query.effort = Effort::Full);
        assert!(place.is_hit(|query| query.effort = Effort::Full));
        assert!(place.is_hit(|query| query.effort = Effort::Quick));
        assert!(place.is_hit(|query| query.now_unix_s = NOW + AGE_MAX_S));
        assert!(!place.is_hit(|query| query.now_unix_s = NOW + AGE_MAX_S + 1));
    }

    #[test]
    fn a_damaged_or_foreign_cache_is_a_miss() {
        let place = Place::new();
        place.load(|_| {});
        let good = fs::read_to_string(place.file()).expect("readable");
        let spoiled = [
            String::new(),
            "nonsense".to_owned(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace("\"machine\": \"", "\"machine\": \"x"),
            good.replace("\"direct\": ", "\"not_direct\": "),
            format!("{good}{}", " ".repeat(1 << 20)),
        ];
        for text in spoiled {
            assert_ne!(text, good);
            fs::write(place.file(), &text).expect("writable");
            assert!(!place.is_hit(|_| {}), "hit with {text}");
            assert!(place.is_hit(|_| {}), "it was replaced");
        }
    }

    #[test]
    fn a_drive_that_is_read_another_way_now_is_a_miss() {
        let place = Place::new();
        place.load(|_| {});
        let text = fs::read_to_string(place.file()).expect("readable");
        let other = match text.contains("\"direct\": true") {
            true => text.replace("\"direct\": true", "\"direct\": false"),
            false => text.replace("\"direct\": false", "\"direct\": true"),
        };
        fs::write(place.file(), other).expect("writable");
        assert!(!place.is_hit(|_| {}));
    }

    #[test]
    fn a_cache_that_cannot_be_written_only_costs_time() {
        let place = Place::new();
        fs::write(place.folder.path().join("deep"), "a file, no folder").expect("written");
        let loaded = place.load(|_| {});
        assert!(matches!(loaded.saved, Err(SaveError::Io { .. })));
        assert!(!storage(&loaded).points.is_empty());
    }

    #[test]
    fn a_model_that_is_missing_or_small_leaves_the_rest_intact() {
        let place = Place::new();
        place.load(|_| {});
        let missing = place.load(|query| query.model_file = Some(Path::new("/nowhere/at/all")));
        assert!(matches!(missing.storage, Some(Err(StorageError::Drive { .. }))));
        assert_eq!(missing.profile.storage.len(), 1);
        let none = place.load(|query| query.model_file = None);
        assert!(none.storage.is_none() && none.from_cache);
        // Too small to measure, but on the same drive: known from the larger file.
        fs::write(&place.model_file, "").expect("written");
        assert!(place.is_hit(|_| {}));
        // Unknown: nothing to remember.
        fs::remove_file(place.file()).expect("removed");
        let loaded = place.load(|_| {});
        assert!(storage(&loaded).points.is_empty());
        assert!(loaded.profile.storage.is_empty());
    }

    #[test]
    fn drives_are_bounded_and_replaced() {
        let place = Place::new();
        let loaded = place.load(|_| {});
        let of = |device: u64, taken_unix_s| {
            let mut storage = storage(&loaded).clone();
            storage.drive.device = device;
            storage.taken_unix_s = taken_unix_s;
            storage
        };
        let mut all = Vec::new();
        for device in 0..40 {
            remember(&mut all, of(device, 1000 + device));
        }
        let devices: Vec<u64> = all.iter().map(|storage| storage.drive.device).collect();
        assert_eq!(devices, (8..40).collect::<Vec<_>>(), "the oldest are gone");
        remember(&mut all, of(9, 5000));
        assert_eq!(all.len(), STORAGE_MAX);
        let replaced: Vec<_> = all.iter().filter(|storage| storage.drive.device == 9).collect();
        assert_eq!(replaced, [&of(9, 5000)]);
    }

    #[test]
    fn profiles_survive_json_and_other_versions_are_named() {
        let profile = Place::new().load(|_| {}).profile;
        assert_eq!(Profile::from_json(&profile.to_json()).expect("a profile"), profile);
        let other = Profile::from_json("{\"version\": 77, \"anything\": []}");
        assert!(matches!(other, Err(ParseError::Version { found: 77 })));
        assert!(matches!(Profile::from_json("{}"), Err(ParseError::Malformed { .. })));
    }

    #[test]
    fn measurements_of_computing_are_kept_and_age() {
        let place = Place::new();
        let mut profile = place.load(|_| {}).profile;
        let kind = crate::ComputeKind {
            ty: "Q4_K".to_owned(),
            layout: "plain".to_owned(),
            product: "matrix".to_owned(),
            n_in: 4096,
        };
        let measured = Compute {
            library: "ggml 1".to_owned(),
            threads: 2,
            kind,
            decode_bytes_per_s: 1e10 / 3.0,
            prompt_flops_per_s: 1e11,
            taken_unix_s: NOW,
        };
        let step = ComputeStep {
            library: "ggml 1".to_owned(),
            threads: 2,
            seconds: 1e-6,
            taken_unix_s: NOW,
        };
        let kept = keep_compute(
            &place.cache_dir,
            &mut profile,
            vec![measured.clone()],
            Some(step.clone()),
        );
        kept.expect("it can be written");
        let loaded = place.load(|query| query.now_unix_s = NOW + 9);
        assert_eq!(loaded.profile.compute, std::slice::from_ref(&measured));
        assert_eq!(loaded.profile.compute_steps, [step]);
        // They stay when the drive is measured again, but not for ever.
        let loaded = place.load(|query| query.effort = Effort::Full);
        assert_eq!(loaded.profile.compute, [measured]);
        let loaded = place.load(|query| query.now_unix_s = NOW + AGE_MAX_S + 1);
        assert!(loaded.profile.compute.is_empty() && loaded.profile.compute_steps.is_empty());
    }

    /// Profiles of before there were measurements of computing are still read.
    #[test]
    fn profiles_without_computing_are_read() {
        let place = Place::new();
        place.load(|_| {});
        let text = fs::read_to_string(place.file()).expect("readable");
        let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let object = json.as_object_mut().expect("an object");
        assert!(object.remove("compute").is_some() && object.remove("compute_steps").is_some());
        fs::write(place.file(), json.to_string()).expect("writable");
        assert!(place.is_hit(|_| {}));
    }

    #[test]
    fn machines_differ() {
        let profile = Place::new().load(|_| {}).profile;
        let (cpu, memory) = (profile.cpu, profile.memory);
        let here = machine(&cpu, &memory, "a");
        assert_eq!(here, machine(&cpu, &memory, "a"));
        assert_ne!(here, machine(&cpu, &memory, "b"));
        assert_ne!(here, machine(&Cpu { cores_online: 999, ..cpu.clone() }, &memory, "a"));
        let larger = Memory { total_bytes: memory.total_bytes + (2 << 30), ..memory };
        assert_ne!(here, machine(&cpu, &larger, "a"));
        let free = Memory { available_bytes: 1, ..memory };
        assert_eq!(here, machine(&cpu, &free, "a"));
    }
}
