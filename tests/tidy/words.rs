//! Words that must not stand in code, and files that have grown too long.

use crate::code::{code, lines_with};
use crate::{each, none, rust};

/// Longest file in `src`, in lines: what one mind holds, with its documentation and tests.
const MAX_LINES: usize = 900;

/// Files outside `src/node/clock.rs` that read a clock, and why the node's determinism does not suffer.
const CLOCKS: &[(&str, &str)] = &[
    ("src/node/clock.rs", "the place where clocks enter the node"),
    ("src/cli/", "a program of its own beside the node: measures and gives up"),
    ("src/client/", "an application's side: deadlines and pauses of its own calls"),
    ("src/transport/dial.rs", "pauses between dials, on tokio's clock, which tests can pause"),
    ("src/transport/refusals.rs", "limits how often a refusal is logged; changes nothing else"),
];

fn forbidden(path: &str, text: &str) -> Vec<String> {
    let in_source = path.starts_with("src/") || path.starts_with("migrations/");
    let mut words: Vec<(&str, &str)> = vec![("#[ignore", "a test runs or goes")];
    if in_source {
        words.extend([
            ("unbounded_channel", "every queue is bounded"),
            ("mpsc::unbounded", "every queue is bounded"),
            ("todo!", "finish it"),
            ("unimplemented!", "finish it"),
            ("dbg!", "log it or leave it"),
        ]);
    } else {
        words.extend([
            ("thread::sleep", "wait for the event"),
            ("std::thread::sleep", "wait for the event"),
            ("time::sleep", "wait for the event"),
            ("tokio::time::sleep", "wait for the event"),
            ("sleep(", "wait for the event"),
            ("sleep_until(", "wait for the event"),
        ]);
    }
    say(path, &code(text), &words)
}

fn clocks(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/") || CLOCKS.iter().any(|(place, _)| path.starts_with(place)) {
        return Vec::new();
    }
    let why = "clocks enter at src/node/clock.rs";
    let words = ["SystemTime::now", "std::time::SystemTime::now", "Instant::now", "std::time::Instant::now"];
    let mut words: Vec<_> = words.map(|word| (word, why)).to_vec();
    words.push(("tokio::time::Instant::now", why));
    say(path, &code(text), &words)
}

fn say(path: &str, code: &str, words: &[(&str, &str)]) -> Vec<String> {
    let found = words.iter().flat_map(|(word, why)| lines_with(code, word).into_iter().map(move |l| (l, word, why)));
    found.map(|(line, word, why)| format!("{path}:{line}: {word}: {why}")).collect()
}

fn length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if path.starts_with("src/") && lines > MAX_LINES {
        return vec![format!("{path}: {lines} lines, at most {MAX_LINES}; split it by what it says")];
    }
    Vec::new()
}

#[test]
fn no_forbidden_word_stands_in_code() {
    none(&each(&rust(), forbidden));
}

#[test]
fn a_forbidden_word_is_caught() {
    for (path, text) in [
        ("src/node/mod.rs", "let (a, b) = mpsc::unbounded_channel();"),
        ("src/node/mod.rs", "fn f() { todo!() }"),
        ("src/node/mod.rs", "fn f() { unimplemented!() }"),
        ("src/node/mod.rs", "dbg!(x);"),
        ("src/node/mod.rs", "#[ignore = \"slow\"]"),
        ("tests/cluster/main.rs", "#[ignore]"),
        ("tests/cluster/main.rs", "std::thread::sleep(pause);"),
        ("tests/cluster/main.rs", "tokio::time::sleep(pause).await;"),
        ("tests/cluster/main.rs", "sleep(pause).await;"),
    ] {
        assert!(!forbidden(path, text).is_empty(), "{path}: {text}");
    }
    none(&forbidden("src/node/mod.rs", "// todo!() some day\nlet s = \"dbg!\"; tokio::time::sleep(pause).await;"));
}

#[test]
fn clocks_enter_at_one_place() {
    none(&each(&rust(), clocks));
    for text in ["Instant::now()", "std::time::SystemTime::now()", "let t = tokio::time::Instant::now();"] {
        assert_eq!(clocks("src/node/owner.rs", text).len(), 1, "{text}");
    }
    none(&clocks("src/node/clock.rs", "Instant::now()"));
    let files = rust();
    for (place, why) in CLOCKS {
        let is_used = files.iter().any(|(path, text)| path.starts_with(place) && code(text).contains("::now"));
        assert!(is_used, "{place} reads no clock any more ({why}): remove its row");
    }
}

#[test]
fn no_source_file_is_too_long() {
    none(&each(&rust(), length));
    assert_eq!(length("src/core/mod.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
    none(&length("src/core/mod.rs", &"\n".repeat(MAX_LINES)));
}
