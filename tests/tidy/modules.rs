//! No orphan: every Rust file is reached from a crate root by module declarations.

use crate::code::is_word;
use crate::{Files, none, rust};
use std::collections::BTreeSet;

/// Whether cargo builds a file by itself.
fn is_root(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    matches!(parts.as_slice(), ["src", "lib.rs" | "main.rs"] | ["tests" | "benches", _] | ["tests", _, "main.rs"])
}

/// `mod name;` declarations with their `#[path]`, if any. Works on lines: rustfmt gives each its own.
fn declarations(text: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    let mut path = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path = \"") {
            path = rest.strip_suffix("\"]").map(str::to_owned);
        } else if let Some(name) = declared(line) {
            found.push((name.to_owned(), path.take()));
        } else if !line.starts_with("#[") {
            path = None;
        }
    }
    found
}

fn declared(line: &str) -> Option<&str> {
    let rest = ["pub(crate) mod ", "pub(super) mod ", "pub mod ", "mod "].iter().find_map(|p| line.strip_prefix(p))?;
    let name = rest.strip_suffix(';')?;
    name.chars().all(is_word).then_some(name)
}

fn orphans(files: &Files) -> Vec<String> {
    // Path, and the directory in which its modules are looked for.
    let mut open: Vec<(String, String)> = Vec::new();
    for path in files.keys().filter(|path| is_root(path)) {
        open.push((path.clone(), parent(path).to_owned()));
    }
    let mut reached = BTreeSet::new();
    while let Some((file, directory)) = open.pop() {
        let Some(text) = files.get(&file) else { continue };
        if !reached.insert(file.clone()) {
            continue;
        }
        for (name, path) in declarations(text) {
            if let Some(path) = path {
                let target = join(parent(&file), &path);
                open.push((target.clone(), parent(&target).to_owned()));
            } else {
                open.push((format!("{directory}/{name}.rs"), format!("{directory}/{name}")));
                open.push((format!("{directory}/{name}/mod.rs"), format!("{directory}/{name}")));
            }
        }
    }
    let lost = files.keys().filter(|path| !reached.contains(*path));
    lost.map(|path| format!("{path}: no module declaration reaches this file")).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn join(directory: &str, path: &str) -> String {
    let mut parts: Vec<_> = directory.split('/').collect();
    for part in path.split('/') {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

#[test]
fn every_file_is_reached_by_a_module_declaration() {
    none(&orphans(&rust()));
}

#[test]
fn an_orphan_is_caught() {
    let files = |names: &[(&str, &str)]| -> Files {
        names.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    };
    let whole = [
        ("src/lib.rs", "pub mod a;\nmod b;\n"),
        ("src/a.rs", "mod c;"),
        ("src/a/c.rs", ""),
        ("src/b/mod.rs", "#[cfg(test)]\n#[path = \"../../migrations/v1.rs\"]\nmod v1;"),
        ("migrations/v1.rs", ""),
        ("tests/x.rs", ""),
        ("tests/y/main.rs", "mod z;"),
        ("tests/y/z.rs", ""),
    ];
    none(&orphans(&files(&whole)));
    for extra in ["src/a/d.rs", "src/c.rs", "migrations/v2.rs", "tests/y/w.rs", "tests/support/x.rs"] {
        let mut with_extra = whole.to_vec();
        with_extra.push((extra, ""));
        assert_eq!(orphans(&files(&with_extra)).len(), 1, "{extra}");
    }
}
