//! Executes the style: every rule is a function over (path, text) that returns its complaints, and has a test that it
//! catches a planted violation.

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/words.rs"]
mod words;

use std::collections::BTreeMap;
use std::path::Path;

/// Path from the repository's root, with `/`, to text.
type Files = BTreeMap<String, String>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of this repository below some directories whose names end so.
fn files(directories: &[&str], ending: &str) -> Files {
    let mut found = Files::new();
    let mut open: Vec<_> = directories.iter().map(|name| root().join(name)).collect();
    while let Some(directory) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_str().is_some_and(|path| path.ends_with(ending)) {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn rust() -> Files {
    let files = files(&["src", "tests", "benches", "migrations"], ".rs");
    assert!(files.len() > 50, "the walk found only {} files", files.len());
    files
}

#[track_caller]
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

/// What a rule says of every file.
fn each(files: &Files, rule: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
    files.iter().flat_map(|(path, text)| rule(path, text)).collect()
}
