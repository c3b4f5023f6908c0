//! Pulls from a hub on this machine that misbehaves as it is told.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::stand_in::{Mishap, StandIn};
use common::{files_below, model, own, split_model, write};
use hypura_gguf::Model;
use hypura_hub::{
    Digest, DiskError, Entry, Progress, PullConfig, PullError, Puller, StoreError, StoreKind,
    Stores,
};

const NAME: &str = "hf.co/org/repo:Q4_K_M";
const FILE: &str = "m-Q4_K_M.gguf";

fn config(hub: &StandIn) -> PullConfig {
    PullConfig {
        endpoint: hub.endpoint(),
        token: Some("secret".to_owned()),
        read_timeout: Duration::from_secs(60),
        retries: 2,
        backoff: Duration::from_millis(1),
        ..PullConfig::default()
    }
}

/// One that gives a connection up soon on which nothing arrives.
fn impatient(hub: &StandIn) -> PullConfig {
    PullConfig { read_timeout: Duration::from_millis(500), ..config(hub) }
}

fn pull(hub: &StandIn, stores: &Stores, name: &str) -> Result<Entry, PullError> {
    pull_with(config(hub), stores, name)
}

fn pull_with(config: PullConfig, stores: &Stores, name: &str) -> Result<Entry, PullError> {
    Puller::new(config).pull(name, stores, &AtomicBool::new(false), &mut |_| {})
}

#[test]
fn a_model_arrives_with_progress_and_is_found_by_all_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let stores = own(folder.path());
    let content = model(1);
    let hub = StandIn::new(&[(FILE, &content), ("m-Q8_0.gguf", &model(2))]);
    let mut steps: Vec<Progress> = Vec::new();
    let entry = Puller::new(config(&hub))
        .pull("hf.co/org/repo", &stores, &AtomicBool::new(false), &mut |step| steps.push(step))
        .unwrap();

    assert_eq!((entry.name.as_str(), entry.store), ("hf.co/org/repo:latest", StoreKind::Own));
    assert_eq!(entry.bytes, content.len() as u64);
    assert_eq!(fs::read(entry.path()).unwrap(), content);
    assert_eq!(entry.details().unwrap().quantization, "Q4_K_M");
    for name in ["org/repo", "hf.co/org/repo:latest", "huggingface.co/org/repo"] {
        assert_eq!(stores.find(name).unwrap().digest, entry.digest, "{name}");
        assert_eq!(stores.resolve(name).unwrap(), entry.path());
    }

    let digest = Digest::of(&content);
    let pulling = format!("pulling {}", &digest.as_str()[..12]);
    let mut statuses: Vec<_> = steps.iter().map(|step| step.status.as_str()).collect();
    statuses.dedup();
    let checked = ["verifying sha256 digest", "writing manifest", "success"];
    assert_eq!(statuses, [&["pulling manifest", &pulling][..], &checked].concat());
    let last = steps.iter().rfind(|step| step.digest.is_some()).unwrap();
    assert_eq!(last.digest, Some(format!("sha256:{digest}")));
    assert_eq!((last.total, last.completed), (Some(entry.bytes), Some(entry.bytes)));

    for request in hub.requests() {
        let is_hub = !request.path.starts_with("/cdn/");
        assert_eq!(request.headers.contains_key("authorization"), is_hub, "{}", request.path);
    }
    // A second time nothing is downloaded.
    pull(&hub, &stores, "hf.co/org/repo").unwrap();
    assert_eq!(hub.downloads().len(), 1);
}

#[test]
fn a_split_set_arrives_whole_and_over_several_pages() {
    let folder = tempfile::tempdir().unwrap();
    let stores = own(folder.path());
    let [first, second] = split_model(1);
    let hub = StandIn::new(&[
        ("BF16/m-00001-of-00002.gguf", &first),
        ("BF16/m-00002-of-00002.gguf", &second),
        ("m-Q8_0.gguf", &model(2)),
    ]);
    *hub.shared.page_files.lock().unwrap() = 1;
    for name in ["org/repo:bf16", "org/repo/BF16/m-00001-of-00002.gguf"] {
        let entry = pull(&hub, &stores, name).unwrap();
        assert_eq!(entry.paths.len(), 2);
        assert_eq!(entry.bytes, (first.len() + second.len()) as u64);
        assert_eq!(Model::open(entry.path()).unwrap().tensors.len(), 2);
    }
    assert_eq!(hub.downloads().len(), 2);
    // The files go with the last model that needs them.
    stores.delete("org/repo:bf16").unwrap();
    assert_eq!(stores.find("org/repo:m").unwrap().details().unwrap().tensors.len(), 2);
    stores.delete("org/repo:m").unwrap();
    assert_eq!(files_below(folder.path()), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn passing_trouble_is_overcome() {
    use Mishap::*;
    let content = model(1);
    let check = |mishaps: &[Mishap], starts: &[usize]| {
        let folder = tempfile::tempdir().unwrap();
        let stores = own(folder.path());
        let hub = StandIn::new(&[(FILE, &content)]);
        hub.go_wrong(mishaps);
        let is_stalled = mishaps.iter().any(|mishap| matches!(mishap, Stall(_)));
        let config = if is_stalled { impatient(&hub) } else { config(&hub) };
        let entry =
            pull_with(config, &stores, NAME).unwrap_or_else(|error| panic!("{mishaps:?}: {error}"));
        assert_eq!(fs::read(entry.path()).unwrap(), content, "{mishaps:?}");
        let begins = |request: &common::stand_in::Request| match request.headers.get("range") {
            Some(range) => range["bytes=".len()..].trim_end_matches('-').parse().unwrap(),
            None => 0,
        };
        let found: Vec<usize> = hub.downloads().iter().map(begins).collect();
        assert_eq!(found, starts, "{mishaps:?}");
        assert_eq!(files_below(folder.path()).len(), 2, "{mishaps:?}: more than manifest and blob");
    };
    check(&[Cut(1000)], &[0, 1000]);
    check(&[Cut(0), Cut(10)], &[0, 0, 10]);
    check(&[Reset(1000)], &[0, 1000]);
    check(&[Stall(1000)], &[0, 1000]);
    check(&[Unmeasured(1000)], &[0, 1000]);
    check(&[Status(500, ""), Status(503, "retry-after: 0")], &[0, 0, 0]);
    check(&[Status(429, "retry-after: 0")], &[0, 0]);
    check(&[Cut(1000), IgnoreRange], &[0, 1000]);
    check(&[Cut(1000), WrongRange], &[0, 1000, 0]);
    check(&[Cut(1000), Status(416, "")], &[0, 1000, 0]);
    // Pieces that don't fit are thrown away once.
    check(&[Cut(1000), Corrupt], &[0, 1000, 0]);
}

#[test]
fn lasting_trouble_is_told() {
    use Mishap::*;
    let content = model(1);
    let check = |mishaps: &[Mishap], is_expected: fn(&PullError) -> bool, words: &str| {
        let folder = tempfile::tempdir().unwrap();
        let hub = StandIn::new(&[(FILE, &content)]);
        hub.go_wrong(mishaps);
        let stores = own(folder.path());
        let error = pull(&hub, &stores, NAME).unwrap_err();
        assert!(is_expected(&error), "{mishaps:?}: {error:?}");
        assert!(error.to_string().contains(words), "{mishaps:?}: {error}");
        assert_eq!(stores.entries().len(), 0);
        let blobs = files_below(&folder.path().join("own/blobs"));
        let is_left = |path: &Path| path.extension().is_some_and(|e| e == "partial" || e == "etag");
        assert!(blobs.iter().all(|path| is_left(path)), "{blobs:?}");
    };
    let thrice = |mishap: Mishap| vec![mishap.clone(), mishap.clone(), mishap];
    check(&thrice(Cut(0)), |e| matches!(e, PullError::Truncated { received_bytes: 0, .. }), "0 of");
    check(
        &thrice(Cut(9)),
        |e| matches!(e, PullError::Truncated { received_bytes: 27, .. }),
        "27 of",
    );
    check(&thrice(Reset(9)), |e| matches!(e, PullError::Truncated { .. }), "pull again");
    check(&thrice(Status(502, "")), |e| matches!(e, PullError::Status { status: 502, .. }), "502");
    check(
        &thrice(Status(429, "retry-after: 0")),
        |e| matches!(e, PullError::RateLimited { .. }),
        "0",
    );
    check(
        &[Status(429, "retry-after: 5000")],
        |e| matches!(e, PullError::RateLimited { seconds: Some(5000) }),
        "5000 seconds",
    );
    for status in [401, 403] {
        check(&[Status(status, "")], |e| matches!(e, PullError::Denied { .. }), "org/repo");
    }
    check(&[Status(404, "")], |e| matches!(e, PullError::NotFound { .. }), "nothing at");
    check(&[Status(418, "")], |e| matches!(e, PullError::Status { .. }), "418");
    check(&[Longer], |e| matches!(e, PullError::WrongLength { .. }), "bytes");
    check(&[Corrupt], |e| matches!(e, PullError::WrongDigest { .. }), "sha256");
    check(
        &[Cut(99), Corrupt, Corrupt],
        |e| matches!(e, PullError::WrongDigest { .. }),
        "thrown away",
    );
}

#[test]
fn trouble_with_the_list_is_told_before_anything_is_made() {
    let check = |status: u16, is_expected: fn(&PullError) -> bool| {
        let folder = tempfile::tempdir().unwrap();
        let hub = StandIn::new(&[(FILE, &model(1))]);
        hub.shared.list_mishaps.lock().unwrap().push_back(Mishap::Status(status, ""));
        let error = pull(&hub, &own(folder.path()), NAME).unwrap_err();
        assert!(is_expected(&error), "{status}: {error:?}");
        assert_eq!(files_below(folder.path()).len(), 0);
    };
    check(401, |e| matches!(e, PullError::Denied { status: 401, has_token: true, .. }));
    check(404, |e| matches!(e, PullError::NotFound { .. }));
}

#[test]
fn what_is_no_model_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stores = own(folder.path());
    let whole = model(1);
    let cut = &whole[..whole.len() - 5000];
    let hub = StandIn::new(&[("text.gguf", b"<html>"), ("cut.gguf", cut), ("tiny.gguf", b"GG")]);
    let error = pull(&hub, &stores, "org/repo/text.gguf").unwrap_err();
    assert!(matches!(error, PullError::NotGguf { .. }), "{error:?}");
    for name in ["org/repo/cut.gguf", "org/repo/tiny.gguf"] {
        let error = pull(&hub, &stores, name).unwrap_err();
        assert!(matches!(error, PullError::Model(_)), "{error:?}");
    }
    let left = files_below(&folder.path().join("own"));
    assert!(left.iter().all(|path| path.extension().is_some()), "{left:?}");
    assert_eq!(stores.entries().len(), 0);
}

/// A download that was killed, by what it leaves.
#[test]
fn a_download_goes_on_after_a_kill() {
    let content = model(1);
    let digest = Digest::of(&content);
    let check = |left: &[u8], etag: Option<&str>, range: Option<&str>, downloads: usize| {
        let folder = tempfile::tempdir().unwrap();
        let stores = own(folder.path());
        let blob = folder.path().join(format!("own/blobs/sha256-{digest}"));
        write(blob.with_added_extension("partial"), left);
        if let Some(etag) = etag {
            write(blob.with_added_extension("etag"), etag);
        }
        let hub = StandIn::new(&[(FILE, &content)]);
        let entry = pull(&hub, &stores, NAME).unwrap();
        assert_eq!(fs::read(entry.path()).unwrap(), content);
        let requests = hub.downloads();
        assert_eq!(requests.len(), downloads);
        let header = |name| requests.first().and_then(|r| r.headers.get(name)).map(String::as_str);
        assert_eq!(header("range"), range);
        assert_eq!(header("if-range"), etag.filter(|_| range.is_some()));
        assert_eq!(files_below(folder.path()).len(), 2);
    };
    let (half, etag) = (&content[..5000], format!("\"{digest}\""));
    check(half, Some(&etag), Some("bytes=5000-"), 1);
    check(half, None, Some("bytes=5000-"), 1);
    check(half, Some("\"other\""), Some("bytes=5000-"), 1);
    check(&content, None, None, 0);
    check(b"", Some(&etag), None, 1);
    let longer = [&content[..], b"x"].concat();
    check(&longer, None, None, 1);
    // After a power cut the end of a file may be zeros.
    check(&[0; 5000], Some(&etag), Some("bytes=5000-"), 2);
    check(&vec![0; content.len()], Some(&etag), None, 1);
}

#[test]
fn a_cancelled_pull_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let stores = own(folder.path());
    let content = model(1);
    let hub = StandIn::new(&[(FILE, &content)]);
    hub.go_wrong(&[Mishap::Cut(1000)]);
    let cancel = AtomicBool::new(false);
    let stop = &mut |step: Progress| {
        cancel.fetch_or(step.completed.is_some_and(|bytes| bytes > 0), Ordering::Relaxed);
    };
    let error = Puller::new(config(&hub)).pull(NAME, &stores, &cancel, stop).unwrap_err();
    assert!(matches!(error, PullError::Cancelled), "{error:?}");
    assert_eq!(stores.entries().len(), 0);
    pull(&hub, &stores, NAME).unwrap();
    assert_eq!(hub.downloads()[1].headers["range"], "bytes=1000-");
}

#[test]
fn two_pulls_of_one_file_download_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let stores = Arc::new(own(folder.path()));
    let hub = Arc::new(StandIn::new(&[(FILE, &model(1))]));
    hub.go_wrong(&[Mishap::Hold]);
    let first = {
        let (hub, stores) = (Arc::clone(&hub), Arc::clone(&stores));
        thread::spawn(move || pull(&hub, &stores, "org/repo:Q4_K_M"))
    };
    while hub.downloads().is_empty() {
        thread::sleep(Duration::from_millis(2));
    }
    // The first has the file now; the second reports what it waits for, and lets it go on.
    let shared = Arc::clone(&hub.shared);
    let release = &mut |step: Progress| {
        if step.digest.is_some() {
            shared.hold.store(false, Ordering::Relaxed);
        }
    };
    let second = Puller::new(config(&hub))
        .pull("org/repo", &stores, &AtomicBool::new(false), release)
        .unwrap();
    let first = first.join().unwrap().unwrap();
    assert_eq!(hub.downloads().len(), 1);
    assert_eq!((first.paths, first.digest), (second.paths, second.digest));
    assert_eq!(stores.entries().len(), 2);
}

#[test]
fn what_has_no_room_is_refused_first() {
    let folder = tempfile::tempdir().unwrap();
    let hub = StandIn::new(&[]);
    hub.list("m.gguf", b"GGUF", Digest::of(b"").as_str(), 1 << 60);
    let pull = |bytes_max| {
        pull_with(PullConfig { bytes_max, ..config(&hub) }, &own(folder.path()), "org/repo")
    };
    let error = pull(u64::MAX).unwrap_err();
    assert!(matches!(error, PullError::Disk(DiskError::NoRoom { .. })), "{error:?}");
    let error = pull(1 << 40).unwrap_err();
    assert!(matches!(error, PullError::Store(StoreError::TooLong { .. })), "{error:?}");
    assert_eq!(hub.downloads().len(), 0);
}

#[test]
fn some_pulls_end_before_the_first_request() {
    let folder = tempfile::tempdir().unwrap();
    let stores = own(folder.path());
    let hub = StandIn::new(&[(FILE, &model(1))]);
    pull(&hub, &stores, NAME).unwrap();
    let before = hub.requests().len();
    let error = pull(&hub, &stores, "hf.co/org/repo:q4_k_m").unwrap_err();
    assert!(matches!(error, PullError::Store(StoreError::CaseCollision { .. })), "{error:?}");
    let error = pull(&hub, &stores, "llama3:8b").unwrap_err();
    assert!(matches!(error, PullError::OllamaRegistry { .. }), "{error:?}");
    let error = pull(&hub, &Stores::default(), NAME).unwrap_err();
    assert!(matches!(error, PullError::Store(StoreError::ReadOnly)), "{error:?}");
    assert_eq!(hub.requests().len(), before);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let pulled = pull_with(PullConfig { endpoint, ..config(&hub) }, &stores, NAME);
    assert!(matches!(pulled, Err(PullError::Network { .. })), "{pulled:?}");
}
