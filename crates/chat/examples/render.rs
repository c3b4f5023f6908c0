//! Renders every template of a folder with every conversation of another, for
//! `scripts/chat-goldens.py` to compare with Python's Jinja2.
//!
//! `render TEMPLATES CONVERSATIONS OUT` writes `OUT/TEMPLATE/CONVERSATION.txt`, or `.error` with
//! the message where the template refuses.

use std::path::{Path, PathBuf};
use std::{env, fs};

use chrono::DateTime;
use hypura_chat::ChatTemplate;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let folders: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [templates, conversations, out] = folders.as_slice() else {
        return Err("usage: render TEMPLATES CONVERSATIONS OUT".into());
    };
    let now = DateTime::parse_from_rfc3339("2025-03-07T09:05:03+00:00")?;
    for template in files(templates, "jinja")? {
        let folder = out.join(template.file_stem().unwrap_or_default());
        fs::create_dir_all(&folder)?;
        let compiled = ChatTemplate::new(&fs::read_to_string(&template)?, "<s>", "</s>");
        for conversation in files(conversations, "json")? {
            let names = serde_json::from_slice(&fs::read(&conversation)?)?;
            let text = match &compiled {
                Ok(compiled) => compiled.render_names(&names, now),
                Err(error) => Err(error.clone()),
            };
            let file = folder.join(conversation.file_stem().unwrap_or_default());
            match text {
                Ok(text) => fs::write(file.with_extension("txt"), text)?,
                Err(error) => fs::write(file.with_extension("error"), error.to_string())?,
            }
        }
    }
    Ok(())
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Failure> {
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}
