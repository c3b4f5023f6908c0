//! Templates render as Python's Jinja2 renders them, byte for byte. `scripts/chat-goldens.py` made
//! what is expected.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use hypura_chat::ChatTemplate;

/// Text by conversation; nothing where Jinja2 refuses.
type Golden = BTreeMap<String, Option<String>>;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn render(source: &str, conversation: &str) -> Option<String> {
    let now = DateTime::parse_from_rfc3339("2025-03-07T09:05:03+00:00").unwrap();
    let path = folder("conversations").join(conversation).with_extension("json");
    let names = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    ChatTemplate::new(source, "<s>", "</s>").unwrap().render_names(&names, now).ok()
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let mut compared = 0;
    for entry in fs::read_dir(folder("templates")).unwrap() {
        let path = entry.unwrap().path();
        let source = fs::read_to_string(&path).unwrap();
        let golden = folder("goldens").join(path.file_stem().unwrap()).with_extension("json");
        let golden: Golden = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
        for (conversation, expected) in golden {
            let text = render(&source, &conversation);
            assert_eq!(text, expected, "{} with {conversation}", path.display());
            compared += 1;
        }
    }
    assert!(compared >= 200, "only {compared} were compared");
}
