use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use hypura_io::{
    Buffer, EngineConfig, EngineKind, Fault, FaultEngine, FaultPlan, Identity, ReadRequest, Wait,
    open_engine,
};

use super::chunks::CHUNK_BYTES;
use super::*;

/// A folder for models, and one for what is remembered, which doesn't exist yet.
struct Place {
    folder: tempfile::TempDir,
    cache_dir: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        let cache_dir = folder.path().join("deep/cache");
        Place { folder, cache_dir }
    }

    /// A file that was last written an hour ago.
    fn file(&self, name: &str, bytes: &[u8]) -> Arc<File> {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        age(&path, 3600);
        open(&path)
    }

    fn cache_file(&self) -> PathBuf {
        self.cache_dir.join("fingerprints.json")
    }

    /// The fingerprint, and the bytes that were read for it.
    fn of(&self, files: &[Arc<File>]) -> (Fingerprint, u64) {
        let mut reader = reader();
        let mut told = (0, 0);
        let found = fingerprint(files, Some(&self.cache_dir), &mut reader, &mut |done, total| {
            assert!(told.0 <= done && done <= total);
            told = (done, total);
            true
        });
        assert_eq!(told.0, told.1, "told to the end");
        let stats = reader.stats();
        assert_eq!(stats.asked_bytes, told.1);
        assert_eq!(stats.read_bytes == 0, told.1 == 0);
        (found.expect("a fingerprint"), stats.asked_bytes)
    }
}

fn age(path: &Path, age_s: u64) {
    let file = fs::File::options().write(true).open(path).expect("there");
    file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).expect("set");
}

fn open(path: &Path) -> Arc<File> {
    Arc::new(File::open(path).expect("there"))
}

fn reader() -> Box<dyn ReadEngine> {
    open_engine(EngineConfig::default()).expect("an engine")
}

/// The fingerprint, read with `reader`; nothing is remembered.
fn read_with(files: &[Arc<File>], reader: &mut dyn ReadEngine) -> Fingerprint {
    fingerprint(files, None, reader, &mut |_, _| true).expect("a fingerprint")
}

/// Bytes that don't repeat.
fn content(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// The definition, word for word.
fn defined(files: &[&[u8]]) -> Fingerprint {
    let number = |number: usize| (number as u64).to_le_bytes();
    let mut model = blake3::Hasher::new_derive_key("hypura model fingerprint 1");
    model.update(&number(files.len()));
    for file in files {
        let mut hash = blake3::Hasher::new_derive_key("hypura model file 1");
        hash.update(&number(file.len()));
        for chunk in file.chunks(1 << 20) {
            hash.update(blake3::hash(chunk).as_bytes());
        }
        model.update(hash.finalize().as_bytes());
    }
    Fingerprint(*model.finalize().as_bytes())
}

const LENS: [usize; 6] =
    [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 19 * CHUNK_BYTES + 12_345];

#[test]
fn it_is_what_its_definition_says() {
    let place = Place::new();
    for len in LENS {
        let bytes = content(len);
        let file = place.file("m", &bytes);
        assert_eq!(read_with(&[file], &mut reader()), defined(&[&bytes]), "{len}");
    }
    let parts = [content(CHUNK_BYTES + 7), content(3)];
    let files = [place.file("1", &parts[0]), place.file("2", &parts[1])];
    assert_eq!(read_with(&files, &mut reader()), defined(&[&parts[0], &parts[1]]));
    // Sessions carry it: it must not change.
    let known = "c85f8d56ceaf961063680ec3829fad07c3da7de3c30069354f9fa0993e8d1ea0";
    assert_eq!(defined(&[b"a model", b""]).to_string(), known);
}

#[test]
fn equal_content_elsewhere_is_the_same_and_each_bit_counts() {
    let place = Place::new();
    let len = 2 * CHUNK_BYTES + 100;
    let mut bytes = content(len);
    let (here, _) = place.of(&[place.file("here", &bytes)]);
    assert_eq!(Place::new().of(&[place.file("elsewhere", &bytes)]).0, here);
    let mut seen = vec![here];
    let mut check = |files: &[Arc<File>], what: &str| {
        let found = read_with(files, &mut reader());
        assert!(!seen.contains(&found), "{what}");
        seen.push(found);
    };
    for at in [0, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES - 1, 2 * CHUNK_BYTES, len - 1] {
        bytes[at] ^= 0x10;
        check(&[place.file("flipped", &bytes)], &format!("bit in byte {at}"));
        bytes[at] ^= 0x10;
    }
    check(&[place.file("longer", &[bytes.as_slice(), &[0]].concat())], "a zero more");
    check(&[place.file("shorter", &bytes[..len - 1])], "a byte less");
    for at in [CHUNK_BYTES, CHUNK_BYTES + 1] {
        let (one, two) = bytes.split_at(at);
        let (one, two) = (place.file("1", one), place.file("2", two));
        check(&[Arc::clone(&one), Arc::clone(&two)], "split");
        check(&[two, one], "split and swapped");
    }
    check(&[place.file("whole", &bytes), place.file("empty", &[])], "an empty file more");
}

#[test]
fn readers_of_all_kinds_agree() {
    let place = Place::new();
    let bytes = content(LENS[5]);
    let file = place.file("m", &bytes);
    let pread = EngineConfig { kind: EngineKind::Pread, ..EngineConfig::default() };
    let narrow = EngineConfig { queue_requests: 1, ..pread };
    for config in [pread, narrow, EngineConfig::default()] {
        let mut engine = open_engine(config).expect("an engine");
        assert_eq!(read_with(&[Arc::clone(&file)], &mut engine), defined(&[&bytes]));
    }
    let plan = FaultPlan {
        seed: 4,
        reorder: true,
        delay_rate: 0.3,
        delay: Duration::from_millis(5),
        ..FaultPlan::default()
    };
    let mut shuffled = FaultEngine::new(reader(), plan);
    assert_eq!(read_with(&[file], &mut shuffled), defined(&[&bytes]));
}

#[test]
fn what_is_known_is_not_read_and_what_changed_is() {
    let place = Place::new();
    let (one, two) = (content(CHUNK_BYTES * 3), content(50_000));
    let (len_one, len_two) = (one.len() as u64, two.len() as u64);
    let files = [place.file("1", &one), place.file("2", &two)];
    let before = place.of(&files);
    assert_eq!(before, (defined(&[&one, &two]), len_one + len_two));
    assert_eq!(place.of(&files), (before.0, 0));
    // File by file.
    assert_eq!(place.of(&files[1..]), (defined(&[&two]), 0));
    // Another content of the same length, at another time.
    let path = files[1].path();
    let mut other = two;
    other[7] ^= 1;
    fs::write(path, &other).expect("written");
    age(path, 3000);
    let files = [Arc::clone(&files[0]), open(path)];
    assert_eq!(place.of(&files), (defined(&[&one, &other]), len_two));
    assert_eq!(place.of(&files).1, 0);
    // Touched: it may have changed.
    age(path, 2000);
    let files = [Arc::clone(&files[0]), open(path)];
    assert_eq!(place.of(&files), (defined(&[&one, &other]), len_two));
    // Each file once, however often it changed.
    let text = fs::read_to_string(place.cache_file()).expect("readable");
    assert_eq!(text.matches("\"inode\"").count(), 2, "{text}");
}

#[test]
fn what_was_written_just_before_it_was_read_is_read_again() {
    let place = Place::new();
    let hash = blake3::hash(b"x");
    let began_unix_ms = 1_800_000_000_000;
    let began = SystemTime::UNIX_EPOCH + Duration::from_millis(began_unix_ms);
    let cases = [
        (-3_600_000, true),
        (-3000, true),
        (-2999, false),
        (0, false),
        (2999, false),
        // From a clock that is ahead: a write from then on would be seen.
        (3000, true),
    ];
    for (inode, (later_ms, is_kept)) in (0..).zip(cases) {
        let modified_unix_ns = (i128::from(began_unix_ms) + later_ms) * 1_000_000;
        let identity = Identity { device: 1, inode, size_bytes: 1, modified_unix_ns };
        remember::keep(&place.cache_dir, identity, hash, began);
        let found = remember::find(&remember::read(&place.cache_dir), identity);
        assert_eq!(found, is_kept.then_some(hash), "{later_ms}");
    }
}

#[test]
fn a_damaged_cache_is_read_past_and_replaced() {
    let place = Place::new();
    let bytes = content(3000);
    let file = [place.file("m", &bytes)];
    place.of(&file);
    let good = fs::read_to_string(place.cache_file()).expect("readable");
    let field = |name: &str| {
        let (_, rest) = good.split_once(&format!("\"{name}\": ")).expect("a field");
        rest.split([',', '\n']).next().expect("a value").to_owned()
    };
    let hash = field("hash");
    let other_hash = hash.replacen(&hash[1..3], if &hash[1..3] == "00" { "01" } else { "00" }, 1);
    let inode = field("inode");
    let spoiled = [
        String::new(),
        "nonsense".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace(&hash, &other_hash),
        good.replace(&hash, "\"\""),
        good.replace(&hash, "\"äöü\""),
        good.replace(&inode, "-1"),
        good.replace("\"check\"", "\"chick\""),
        format!("{good}{}", " ".repeat(1 << 20)),
    ];
    for text in spoiled {
        assert_ne!(text, good);
        fs::write(place.cache_file(), &text).expect("writable");
        assert_eq!(place.of(&file), (defined(&[&bytes]), 3000), "with {text}");
        assert_eq!(place.of(&file), (defined(&[&bytes]), 0), "it was replaced");
    }
    // A folder in its place can't be replaced: that only costs time.
    fs::remove_file(place.cache_file()).expect("removed");
    fs::create_dir(place.cache_file()).expect("made");
    assert_eq!(place.of(&file), (defined(&[&bytes]), 3000));
}

#[test]
fn the_cache_is_bounded_and_the_oldest_go() {
    let place = Place::new();
    let hash = blake3::hash(b"x");
    let identity = |inode: usize| Identity {
        device: u64::MAX,
        inode: u64::MAX - inode as u64,
        size_bytes: u64::MAX,
        modified_unix_ns: i64::MAX.into(),
    };
    let n = remember::ENTRIES_MAX + 3;
    let mut entries = Vec::new();
    for inode in 0..n {
        let entry = remember::Entry::new(identity(inode), hash).expect("a time");
        remember::add(&mut entries, entry);
    }
    remember::write(&place.cache_dir, entries);
    let entries = remember::read(&place.cache_dir);
    assert_eq!(entries.len(), remember::ENTRIES_MAX, "and the file is not too large to be read");
    for inode in 0..n {
        let found = remember::find(&entries, identity(inode));
        assert_eq!(found, (inode >= 3).then_some(hash), "{inode}");
    }
}

#[test]
fn interruption_leaves_nothing_in_flight_and_keeps_whole_files() {
    let place = Place::new();
    let (one, two) = (content(CHUNK_BYTES), content(CHUNK_BYTES * 9));
    let files = [place.file("1", &one), place.file("2", &two)];
    let mut reader = reader();
    let mut calls = Vec::new();
    let stopped = fingerprint(&files, Some(&place.cache_dir), &mut reader, &mut |done, total| {
        calls.push(done);
        assert_eq!(total, 10 << 20);
        done < 3 << 20
    });
    assert!(matches!(stopped, Err(FingerprintError::Interrupted)));
    assert_eq!(calls.last(), Some(&(3 << 20)), "not called again");
    assert_eq!(reader.in_flight(), 0);
    assert_eq!(place.of(&files), (defined(&[&one, &two]), two.len() as u64));
    // At the very beginning, and at the very end.
    for stop_at in [0, two.len() as u64] {
        let stopped = fingerprint(&files[1..], None, &mut reader, &mut |done, _| done < stop_at);
        assert!(matches!(stopped, Err(FingerprintError::Interrupted)), "{stop_at}");
    }
}

#[test]
fn errors_of_the_drive_are_told_and_nothing_is_remembered() {
    let place = Place::new();
    let bytes = content(9 * CHUNK_BYTES);
    let files = [place.file("m", &bytes)];
    for (number, fault, words) in
        [(0, Fault::Fail, "can't read 1048576 bytes at offset 0"), (8, Fault::Short, "truncated")]
    {
        let plan = FaultPlan { at: [(number, fault)].into(), ..FaultPlan::default() };
        let mut reader = FaultEngine::new(reader(), plan);
        let failed = fingerprint(&files, Some(&place.cache_dir), &mut reader, &mut |_, _| true);
        let told = failed.expect_err("a fault").to_string();
        assert!(told.contains(words) && told.contains("/m"), "{told}");
        assert_eq!(reader.in_flight(), 0);
        assert!(!place.cache_file().exists());
    }
}

#[test]
fn a_file_that_changes_meanwhile_has_no_fingerprint() {
    let place = Place::new();
    let (one, two) = (content(3000), content(3000));
    let files = [place.file("1", &one), place.file("2", &two)];
    let write = |file: &File| {
        let handle = fs::File::options().write(true).open(file.path()).expect("there");
        handle.write_all_at(b"!", 5).expect("written");
    };
    let changed = |change: &dyn Fn(u64)| {
        let mut reader = reader();
        let result = fingerprint(&files, Some(&place.cache_dir), &mut reader, &mut |done, _| {
            change(done);
            true
        });
        assert!(matches!(result, Err(FingerprintError::Changed(_))), "{result:?}");
    };
    // The first one, while the second one is read; the first one is remembered as it was.
    changed(&|done| {
        if done == 6000 {
            write(&files[0])
        }
    });
    assert!(place.cache_file().exists());
    // Remembered, and not that any more: nothing is read.
    changed(&|_| panic!("nothing to read"));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_remembered() {
    let place = Place::new();
    let file = place.file("m", &content(3000));
    let result = fingerprint(
        std::slice::from_ref(&file),
        Some(&place.cache_dir),
        &mut reader(),
        &mut |_, _| {
            age(file.path(), 1800);
            true
        },
    );
    assert!(matches!(result, Err(FingerprintError::Changed(_))));
    assert!(!place.cache_file().exists());
    // Before: then it needn't be read.
    let mut reader = reader();
    let result = fingerprint(&[file], None, &mut reader, &mut |_, _| true);
    assert!(matches!(result, Err(FingerprintError::Changed(_))));
    assert_eq!(reader.stats().requests, 0);
}

#[test]
fn a_reader_with_other_work_is_left_alone() {
    let place = Place::new();
    let files = [place.file("m", &content(3000))];
    let mut reader = reader();
    let buffer = Buffer::aligned(3000, 4096).expect("memory");
    reader.submit(ReadRequest::new(Arc::clone(&files[0]), 0, buffer, 0)).expect("room");
    let refused = fingerprint(&files, None, &mut reader, &mut |_, _| true);
    assert!(matches!(refused, Err(FingerprintError::ReaderBusy)));
    let mut out = Vec::new();
    reader.complete(&mut out, Wait::Forever);
    assert_eq!(out.len(), 1);
}
