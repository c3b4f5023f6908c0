//! Files of each version that ever was must stay readable.

use std::fs;
use std::path::{Path, PathBuf};

use hypura_kv::{
    PortableReader, ScopeFields, Session, SessionMessage, SessionName, SessionStore, write_portable,
};

const BLOCKS: [&[u8]; 2] = [b"image of a block", &[0, 255, 13, 10]];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn session() -> Session {
    let text = str::to_owned;
    let message = |role, content| SessionMessage { role: text(role), content: text(content) };
    Session {
        model_name: text("demo-3m"),
        model_fingerprint: "0123456789abcdef".repeat(4),
        scope: ScopeFields {
            model: "0123456789abcdef".repeat(4),
            type_k: text("f16"),
            type_v: text("q8_0"),
            rotation: text("on"),
            flash_attention: text("auto"),
            positions: text("yarn"),
            adapters: text("a.gguf"),
            library: text("llama.cpp 1"),
            backend: text("CPU"),
            layout: text("plain"),
            tenant: text("t"),
        },
        messages: vec![message("user", "Grüezi \"Welt\"\n"), message("assistant", "…")],
        tokens: vec![1, 2, 1 << 17, -1, i32::MIN],
        text: text("<user>Grüezi \"Welt\"\n<assistant>…"),
        created_unix_s: 1_764_000_000,
        updated_unix_s: 1_764_000_123,
    }
}

/// The files as this version writes them.
fn written() -> [(&'static str, Vec<u8>); 2] {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SessionStore::open(folder.path()).expect("a store");
    let name = SessionName::parse("v1").expect("a name");
    store.put(&name, &session()).expect("kept");
    let alone = fs::read(folder.path().join("v1.session")).expect("readable");
    let mut portable = Vec::new();
    let blocks = BLOCKS.map(|block| Ok(block.to_vec()));
    write_portable(&mut portable, &session(), blocks).expect("written");
    [("v1.session", alone), ("v1.hypura", portable)]
}

#[test]
fn version_1_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(fixture("v1.session"), folder.path().join("old.session")).expect("copied");
    let store = SessionStore::open(folder.path()).expect("a store");
    let name = SessionName::parse("old").expect("a name");
    assert_eq!(store.get(&name).expect("readable"), Some(session()));

    let file = fs::File::open(fixture("v1.hypura")).expect("there");
    let mut reader = PortableReader::open(file).expect("readable");
    assert_eq!(reader.session(), &session());
    for block in BLOCKS {
        assert_eq!(reader.next_block().expect("readable").as_deref(), Some(block));
    }
    assert_eq!(reader.next_block().expect("whole"), None);
}

/// Whoever changes what is written makes a new version, keeps the old fixtures, and adds new ones.
#[test]
fn version_1_is_written() {
    for (name, bytes) in written() {
        assert!(bytes == fs::read(fixture(name)).expect("there"), "{name} is written differently");
    }
}
