//! What lies where: the top level, migrations, benches, the README, and what `ops/` gives to operators.

use crate::code::{code, is_word, lines_with};
use crate::{Files, files, none, root, rust};
use std::collections::BTreeSet;

/// What may stand at the top level besides dotfiles. `clients` holds clients in other languages.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "migrations",
    "benches",
    "tests",
    "ops",
    "clients",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "rustfmt.toml",
    "clippy.toml",
    "deny.toml",
];
/// Longest README, in lines.
const MAX_README: usize = 130;

fn top_level(names: &[String], ignored: &str) -> Vec<String> {
    let is_ignored = |name: &str| ignored.lines().any(|line| line.trim_matches('/') == name);
    let strange =
        names.iter().filter(|name| !TOP.contains(&name.as_str()) && !name.starts_with('.') && !is_ignored(name));
    strange.map(|name| format!("{name}: does not belong at the top level")).collect()
}

fn migrations(names: &[String]) -> Vec<String> {
    let mut numbers = BTreeSet::new();
    let mut complaints = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".rs")) {
        let stem = name.trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
        match stem.strip_prefix('v').and_then(|number| number.parse::<u32>().ok()) {
            Some(number) if stem == format!("v{number}") => drop(numbers.insert(number)),
            _ => complaints.push(format!("{name}: a migration is named vN.rs")),
        }
    }
    for (expected, number) in (1..).zip(&numbers) {
        if *number != expected {
            complaints.push(format!("migrations: v{expected}.rs is missing"));
            break;
        }
    }
    complaints
}

fn benches(files: &Files, manifest: &str) -> Vec<String> {
    let is_named = |name: &str| manifest.contains(&format!("[[bench]]\nname = \"{name}\""));
    let names = files.keys().filter_map(|path| path.strip_prefix("benches/")?.strip_suffix(".rs"));
    let lost = names.filter(|name| !name.contains('/') && !is_named(name));
    lost.map(|name| format!("benches/{name}.rs: no [[bench]] in Cargo.toml names it")).collect()
}

/// Every dependency is used: by its name as a path, or as a feature holder with a reason here.
fn dependencies(manifest: &str, files: &Files) -> Vec<String> {
    let table = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let table = table.split("\n[profile").next().unwrap_or_default();
    let code: Vec<String> = files.values().map(|text| code(text)).collect();
    let names = table.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.trim());
    let names = names.filter(|name| name.chars().all(|c| is_word(c) || c == '-'));
    let is_used = |name: &&str| {
        let name = match *name {
            "rustls-webpki" => "webpki".to_owned(),
            name => name.replace('-', "_"),
        };
        let wanted = [format!("{name}::"), format!("use {name};")];
        code.iter().any(|code| wanted.iter().any(|wanted| !lines_with(code, wanted).is_empty()))
    };
    let skipped = ["name", "harness", "path"];
    let lost = names.filter(|name| !skipped.contains(name) && !is_used(name));
    lost.map(|name| format!("Cargo.toml: nothing uses {name}")).collect()
}

fn readme(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > MAX_README { vec![format!("README.md: {lines} lines, at most {MAX_README}")] } else { Vec::new() }
}

/// Every alert has a section of its name in the runbook and points to it, and no section is left without an alert.
fn runbook(alerts: &str, runbook: &str) -> Vec<String> {
    let named = |text: &str, prefix: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| Some(line.trim().strip_prefix(prefix)?.trim().to_owned())).collect()
    };
    let alerts_named = named(alerts, "- alert:");
    let sections = named(runbook, "### ");
    let mut complaints = Vec::new();
    for name in &alerts_named {
        if !sections.contains(name) {
            complaints.push(format!("ops/README.md: no section for the alert {name}"));
        }
        if !alerts.contains(&format!("runbook: ops/README.md#{}\n", name.to_lowercase())) {
            complaints.push(format!("ops/prometheus/alerts.yml: {name} does not name its section of the runbook"));
        }
    }
    let orphans = sections.difference(&alerts_named);
    complaints.extend(orphans.map(|name| format!("ops/README.md: {name} is no alert")));
    complaints
}

#[test]
fn nothing_strange_stands_at_the_top_level() {
    let entries = std::fs::read_dir(root()).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    none(&top_level(&names, &std::fs::read_to_string(root().join(".gitignore")).unwrap()));
    let planted = ["utils.py", "src", "target", ".ci"].map(String::from);
    assert_eq!(top_level(&planted, "/target\n").len(), 1);
}

#[test]
fn migrations_are_numbered_without_gaps() {
    let found: Vec<String> = files(&["migrations"], ".rs").into_keys().collect();
    assert!(!found.is_empty());
    none(&migrations(&found));
    for planted in [
        &["migrations/v1.rs", "migrations/v3.rs"][..],
        &["migrations/v2.rs"],
        &["migrations/v01.rs"],
        &["migrations/next.rs"],
    ] {
        let planted: Vec<_> = planted.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(migrations(&planted).len(), 1, "{planted:?}");
    }
}

#[test]
fn every_bench_is_in_the_manifest() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    none(&benches(&files(&["benches"], ".rs"), &manifest));
    let planted = Files::from([("benches/lost.rs".to_owned(), String::new())]);
    assert_eq!(benches(&planted, &manifest).len(), 1);
}

#[test]
fn every_dependency_is_used() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    none(&dependencies(&manifest, &rust()));
    let planted = "x\n[dependencies]\nserde = \"1\"\nleft-pad = { version = \"1\" }\n[profile.release]\n";
    let files = Files::from([("src/lib.rs".to_owned(), "use serde::Serialize; // left_pad::pad".to_owned())]);
    assert_eq!(dependencies(planted, &files), ["Cargo.toml: nothing uses left-pad"]);
}

#[test]
fn the_readme_is_short() {
    if let Ok(text) = std::fs::read_to_string(root().join("README.md")) {
        none(&readme(&text));
    }
    assert_eq!(readme(&"\n".repeat(MAX_README + 1)).len(), 1);
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let read = |name: &str| std::fs::read_to_string(root().join("ops").join(name)).unwrap();
    none(&runbook(&read("prometheus/alerts.yml"), &read("README.md")));
    let alert = "- alert: AlertX\n  runbook: ops/README.md#alertx\n";
    none(&runbook(alert, "### AlertX"));
    assert_eq!(runbook(alert, "### AlertY").len(), 2);
    assert_eq!(runbook("- alert: AlertX\n", "### AlertX").len(), 1);
}

#[test]
fn the_example_configuration_is_one_that_the_program_takes() {
    concordat::config::Config::load(&root().join("ops/concordat.example.toml")).unwrap();
}
