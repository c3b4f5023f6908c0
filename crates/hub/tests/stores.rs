//! Finding, listing, making, copying and deleting models.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{files_below, model, own, split_model, write};
use hypura_hub::{
    Blob, Digest, Manifest, Message, ModelRef, ResolveError, StoreError, StoreKind, Stores,
};
use serde_json::{Value, json};

/// An Ollama store with `demo:latest`, and a model whose weights lie outside of it.
fn ollama(root: &Path, weights: &[u8]) -> PathBuf {
    let mut layers = Vec::new();
    for (kind, content) in [
        ("model", weights),
        ("template", b"{{ .Prompt }}"),
        ("system", b"Be brief."),
        ("params", br#"{"num_ctx":2048,"stop":["<|end|>"]}"#),
        ("messages", br#"[{"role":"user","content":"Hi","images":null}]"#),
        ("license", b"MIT"),
    ] {
        let digest = Digest::of(content);
        write(root.join(format!("blobs/sha256-{digest}")), content);
        let kind = format!("application/vnd.ollama.image.{kind}");
        layers.push(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": 1}));
    }
    let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
    let path = root.join("manifests/registry.ollama.ai/library/demo/latest");
    write(&path, &manifest);
    write(root.join("manifests/registry.ollama.ai/me/demo/7b"), &manifest);
    write(root.join("manifests/registry.ollama.ai/library/bad/latest"), "not json");
    let outside = json!({"layers": [
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../secret"}
    ]});
    write(root.join("manifests/registry.ollama.ai/library/outside/latest"), outside.to_string());
    layers
        .push(json!({"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:00"}));
    let adapter = json!({ "layers": layers }).to_string();
    write(root.join("manifests/registry.ollama.ai/library/adapter/latest"), adapter);
    path
}

#[test]
fn names_of_all_stores_resolve() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    write(at("folder/tiny.gguf"), "");
    write(at("folder/.gguf"), "");
    write(at("folder/big-00001-of-00002.gguf"), "12");
    write(at("folder/big-00002-of-00002.gguf"), "345");
    for (revision, content) in [("aaa", "old"), ("bbb", "new"), ("ccc", "other")] {
        write(at(&format!("hf/models--org--repo/snapshots/{revision}/sub/q4.gguf")), content);
    }
    write(at("hf/models--org--repo/refs/main"), "bbb\n");
    ollama(&at("ollama"), b"weights");
    let stores = Stores {
        folders: vec![at("folder")],
        ollama: Some(at("ollama")),
        hugging_face: Some(at("hf")),
        own: None,
    };
    let weights = format!("ollama/blobs/sha256-{}", Digest::of(b"weights"));
    for (name, path) in [
        ("tiny", "folder/tiny.gguf"),
        ("tiny:latest", "folder/tiny.gguf"),
        ("big", "folder/big-00001-of-00002.gguf"),
        ("org/repo/q4", "hf/models--org--repo/snapshots/bbb/sub/q4.gguf"),
        ("demo", &weights),
        ("demo:latest", &weights),
        ("me/demo:7b", &weights),
    ] {
        assert_eq!(stores.resolve(name).unwrap(), at(path), "{name}");
    }
    let entries = stores.entries();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(
        names,
        ["big:latest", "demo:latest", "me/demo:7b", "org/repo/q4:latest", "tiny:latest"]
    );
    assert_eq!((entries[0].bytes, entries[0].paths.len()), (5, 2));

    let error = stores.resolve("none").unwrap_err().to_string();
    assert!(error.contains("tiny") && error.contains("demo:latest"), "{error}");
    let error = stores.resolve("Tiny").unwrap_err();
    assert!(matches!(error, ResolveError::Unknown { .. }), "{error}");
    assert!(matches!(stores.resolve("./x.gguf"), Err(ResolveError::NoFile(_))));
    let folder = stores.resolve(root.path().to_str().unwrap());
    assert!(matches!(folder, Err(ResolveError::Folder(_))));
    for name in ["bad", "outside", "adapter"] {
        let error = stores.find(name).unwrap_err();
        assert!(matches!(error, ResolveError::Unusable { .. }), "{name}: {error}");
    }
}

#[test]
fn a_name_is_never_a_path() {
    let root = tempfile::tempdir().unwrap();
    let stores = own(root.path());
    let path = root.path().join("secret.gguf");
    write(&path, model(1));
    let path = path.to_str().unwrap();
    assert!(stores.resolve(path).is_ok());
    let long = "a".repeat(5000);
    for name in [path, "../secret", "own/../../secret.gguf", "a\0b", "", "a:b:c", "C:\\x", &long] {
        assert!(stores.find(name).is_err(), "{name}");
        let manifest = Manifest::of(ModelRef::File(path.into()));
        let made = stores.create(name, &manifest);
        assert!(matches!(made, Err(StoreError::Name(_))), "{name}: {made:?}");
        assert!(stores.delete(name).is_err(), "{name}");
    }
    assert_eq!(files_below(root.path()), [PathBuf::from("secret.gguf")]);
}

#[test]
fn ollamas_layers_count_but_for_the_template() {
    let root = tempfile::tempdir().unwrap();
    let manifest_path = ollama(root.path(), &model(1));
    let stores = Stores { ollama: Some(root.path().to_owned()), ..Stores::default() };
    let entry = stores.find("demo").unwrap();
    assert_eq!(entry.store, StoreKind::Ollama);
    assert_eq!(entry.digest, Digest::of(&fs::read(manifest_path).unwrap()).as_str());
    let manifest = entry.manifest.as_ref().unwrap();
    assert_eq!(manifest.system.as_deref(), Some("Be brief."));
    assert_eq!(manifest.template, None);
    assert_eq!(manifest.parameters["stop"], json!(["<|end|>"]));
    let message = Message { role: "user".to_owned(), content: "Hi".to_owned() };
    assert_eq!(manifest.messages, [message]);
    assert_eq!(manifest.license.as_deref(), Some("MIT"));
    assert_eq!(entry.details().unwrap().context_length, Some(4096));
}

#[test]
fn details_are_what_the_header_says() {
    let root = tempfile::tempdir().unwrap();
    write(root.path().join("m.gguf"), model(1));
    let stores = Stores { folders: vec![root.path().to_owned()], ..Stores::default() };
    let entry = stores.find("m").unwrap();
    let details = entry.details().unwrap();
    assert_eq!((details.architecture.as_str(), details.family.as_str()), ("llama", "llama"));
    assert_eq!((details.parameter_count, details.parameter_size.as_str()), (25_856, "26K"));
    assert_eq!(details.quantization, "Q4_K_M");
    assert_eq!(details.embedding_length, Some(256));
    assert_eq!(details.chat_template.as_deref(), Some("{{ messages }}"));
    assert!(!details.is_embedding);
    assert_eq!(details.metadata["tokenizer.ggml.tokens"], Value::Null);
    assert_eq!(details.metadata["test.few"], json!([1, 2]));
    assert_eq!(details.metadata["test.infinite"], Value::Null);
    assert_eq!(details.tensors[0].shape, [256, 100]);
    let full = entry.full_metadata().unwrap();
    assert_eq!(full["tokenizer.ggml.tokens"].as_array().unwrap().len(), 100);

    // From memory while the file is the same, and read again when it isn't.
    assert!(std::sync::Arc::ptr_eq(&details, &entry.details().unwrap()));
    let other = [model(2), vec![0; 7]].concat();
    write(root.path().join("m.gguf"), other);
    let changed = stores.find("m").unwrap();
    assert_eq!(changed.details().unwrap().metadata["test.seed"], 2);
    assert_ne!(changed.digest, entry.digest);
    write(root.path().join("m.gguf"), "GGUF");
    assert!(stores.find("m").unwrap().details().is_err());
}

#[test]
fn a_digest_is_of_the_content() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let content = model(1);
    let sha256 = Digest::of(&content);
    write(at(&format!("hf/models--a--b/blobs/{sha256}")), &content);
    fs::create_dir_all(at("hf/models--a--b/snapshots/r")).unwrap();
    let blob = format!("../../blobs/{sha256}");
    symlink(blob, at("hf/models--a--b/snapshots/r/m.gguf")).unwrap();
    write(at("x/one.gguf"), &content);
    write(at("x/two.gguf"), &content);
    write(at("x/three.gguf"), model(3));
    let stores =
        Stores { folders: vec![at("x")], hugging_face: Some(at("hf")), ..Stores::default() };
    let digest = |name| stores.find(name).unwrap().digest;
    assert_eq!(digest("a/b/m"), sha256.as_str());
    assert_eq!(digest("one"), digest("two"));
    assert_ne!(digest("one"), digest("three"));
}

#[test]
fn models_are_made_copied_and_deleted() {
    let root = tempfile::tempdir().unwrap();
    let mut stores = own(root.path());
    stores.folders = vec![root.path().join("folder")];
    let weights = root.path().join("folder/base.gguf");
    write(&weights, model(1));

    let mut manifest = stores.find("base").unwrap().to_manifest();
    manifest.system = Some("Be brief.".to_owned());
    manifest.parameters.insert("temperature".to_owned(), json!(0.1));
    let made = stores.create("me/short", &manifest).unwrap();
    assert_eq!((made.name.as_str(), made.store), ("me/short:latest", StoreKind::Own));
    assert_eq!(made.manifest.as_ref(), Some(&manifest));
    assert_eq!(stores.resolve("me/short").unwrap(), weights);

    stores.copy("me/short", "second:v1").unwrap();
    assert_eq!(stores.find("second:v1").unwrap().digest, made.digest);
    stores.copy("base", "base:copy").unwrap();
    let error = stores.copy("none", "x").unwrap_err();
    assert!(matches!(error, StoreError::Resolve(ResolveError::Unknown { .. })), "{error}");

    stores.delete("me/short").unwrap();
    assert!(stores.find("me/short").is_err());
    assert!(!root.path().join("own/manifests/-/me").exists());
    let error = stores.delete("base").unwrap_err();
    assert!(matches!(error, StoreError::Elsewhere { .. }), "{error}");
    assert!(error.to_string().contains("base.gguf"), "{error}");
    let error = stores.delete("me/short").unwrap_err();
    assert!(matches!(error, StoreError::Resolve(ResolveError::Unknown { .. })), "{error}");
    assert!(weights.exists());

    // A model whose file went away is told, left out of lists, and can be deleted.
    fs::remove_file(&weights).unwrap();
    let error = stores.find("second:v1").unwrap_err();
    assert!(matches!(error, ResolveError::Unusable { .. }), "{error}");
    assert_eq!(stores.entries().len(), 0);
    stores.delete("second:v1").unwrap();
    write(root.path().join("own/manifests/-/-/broken/latest"), "{");
    stores.delete("broken").unwrap();
    stores.delete("base:copy").unwrap();
    assert_eq!(files_below(root.path()), [""; 0].map(PathBuf::from));
}

#[test]
fn names_that_differ_by_case_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let stores = own(root.path());
    let weights = root.path().join("m.gguf");
    write(&weights, model(1));
    let manifest = Manifest::of(ModelRef::File(weights));
    stores.create("Demo", &manifest).unwrap();
    stores.create("Demo:latest", &manifest).unwrap();
    let error = stores.create("demo", &manifest).unwrap_err();
    assert!(matches!(error, StoreError::CaseCollision { .. }), "{error}");
    assert!(stores.find("demo").is_err());
    assert_eq!(stores.entries().len(), 1);
}

#[test]
fn blobs_go_with_the_last_model_that_needs_them() {
    let root = tempfile::tempdir().unwrap();
    let stores = own(root.path());
    let put =
        |content: &[u8]| stores.put_blob(&Digest::of(content), &mut &content[..], 1 << 20).unwrap();
    let (one, two) = (put(&model(1)), put(&model(2)));
    assert_eq!(stores.blob(&one.sha256).unwrap(), Some(one.clone()));
    let of = |blob: &Blob| Manifest::of(ModelRef::Blobs(vec![blob.clone()]));
    stores.create("a", &of(&one)).unwrap();
    stores.create("b", &of(&one)).unwrap();
    stores.create("a", &of(&two)).unwrap();
    assert!(stores.blob(&one.sha256).unwrap().is_some());
    stores.delete("b").unwrap();
    assert_eq!(stores.blob(&one.sha256).unwrap(), None);
    // While a manifest is damaged, what may be its own stays.
    write(root.path().join("own/manifests/-/-/broken/latest"), "{");
    stores.delete("a").unwrap();
    assert!(stores.blob(&two.sha256).unwrap().is_some());
}

#[test]
fn only_sound_files_become_models() {
    let root = tempfile::tempdir().unwrap();
    let stores = own(root.path());
    let content = model(1);
    let wrong = stores.put_blob(&Digest::of(b"other"), &mut &content[..], 1 << 20);
    assert!(matches!(wrong, Err(StoreError::WrongDigest { .. })), "{wrong:?}");
    let long = stores.put_blob(&Digest::of(&content), &mut &content[..], 100);
    assert!(matches!(long, Err(StoreError::TooLong { .. })), "{long:?}");
    assert_eq!(files_below(root.path()), [""; 0].map(PathBuf::from));

    let check = |model: ModelRef, is_expected: fn(&StoreError) -> bool| {
        let error = stores.create("m", &Manifest::of(model)).unwrap_err();
        assert!(is_expected(&error), "{error:?}");
    };
    let absent = Blob { sha256: Digest::of(&content), bytes: 1 };
    check(ModelRef::Blobs(vec![absent]), |e| matches!(e, StoreError::NoBlob { .. }));
    let text = stores.put_blob(&Digest::of(b"text"), &mut &b"text"[..], 100).unwrap();
    let other_length = Blob { bytes: 5, ..text.clone() };
    check(ModelRef::Blobs(vec![other_length]), |e| matches!(e, StoreError::NoBlob { .. }));
    check(ModelRef::Blobs(vec![text]), |e| matches!(e, StoreError::Model(_)));
    check(ModelRef::Blobs(Vec::new()), |e| matches!(e, StoreError::Manifest(_)));
    check(ModelRef::File("relative.gguf".into()), |e| matches!(e, StoreError::Manifest(_)));
    check(ModelRef::File(root.path().join("no.gguf")), |e| matches!(e, StoreError::Model(_)));
    let read_only = Stores::default().create("m", &Manifest::of(ModelRef::File("/x".into())));
    assert!(matches!(read_only, Err(StoreError::ReadOnly)), "{read_only:?}");
}

#[test]
fn a_split_set_of_a_folder_can_be_copied() {
    let root = tempfile::tempdir().unwrap();
    let mut stores = own(root.path());
    stores.folders = vec![root.path().join("folder")];
    for (no, part) in (1..).zip(split_model(1)) {
        write(root.path().join(format!("folder/m-0000{no}-of-00002.gguf")), part);
    }
    stores.copy("m", "copy").unwrap();
    let entry = stores.find("copy").unwrap();
    assert_eq!(entry.paths.len(), 2);
    assert_eq!(entry.details().unwrap().tensors.len(), 2);
}
