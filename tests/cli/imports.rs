//! Importing a file more than once, and auditing meanwhile.

use crate::support::run;
use crate::walk::Dev;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::tempdir;

#[expect(clippy::disallowed_methods, reason = "a deadline is a wall time")]
fn wall_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn genesis_id(dir: &Path) -> Value {
    let genesis: Value = serde_json::from_slice(&fs::read(dir.join("d/genesis.json")).unwrap()).unwrap();
    genesis["genesis_id"].clone()
}

/// What the first run of a file notes.
fn note(dir: &Path, text: &str, deadline_ms: u64) -> String {
    let file: String = hex::encode(Sha256::digest(text)).chars().take(32).collect();
    let note = json!({
        "genesis_id": genesis_id(dir), "client": "file-import", "file": file, "deadline_ms": deadline_ms
    });
    format!("{note}\n")
}

/// How many proposals the furthest node has applied; the one that answered last is as far.
fn committed(dev: &Dev, dir: &Path) -> u64 {
    let statuses = dev.run(dir, &["--json", "status"]).succeeds().stdout;
    let statuses = statuses.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    statuses.filter_map(|status| status["committed_count"].as_u64()).max().expect("a node counts")
}

#[test]
fn no_line_is_applied_twice_however_late_a_file_is_imported_again() {
    let dir = tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let text = "{\"op\":\"set_config\",\"key\":\"k\",\"value\":1}\n{\"n\":2}\n";
    fs::write(dir.path().join("f.jsonl"), text).unwrap();
    let state = dir.path().join("f.jsonl.concordat");
    let import = || dev.run(dir.path(), &["propose", "--file", "f.jsonl", "--remember-days", "400"]);

    // As if the first run had been nearly as long ago as it said it should be remembered.
    let noted = note(dir.path(), text, wall_ms() + 4_000);
    fs::write(&state, &noted).unwrap();
    import().succeeds();
    let before = committed(&dev, dir.path());
    let end = wall_ms() + 60_000;
    let refused = loop {
        let again = import();
        if again.code != Some(0) {
            break again;
        }
        for line in again.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            assert_eq!(line["repeated"], true, "{line}");
        }
        assert!(wall_ms() < end, "the deadline passes");
    };
    refused.fails_with(&["were proposed before", "remove f.jsonl.concordat first"]);
    // The log's own clock has passed the deadline too, so the cluster has forgotten the requests.
    dev.run(dir.path(), &["propose", "{\"later\":true}"]).succeeds();
    import().fails_with(&["were proposed before"]);
    assert_eq!((committed(&dev, dir.path()), fs::read_to_string(&state).unwrap()), (before + 1, noted));
}

#[test]
fn the_first_run_of_a_file_settles_the_deadline_of_all() {
    let dir = tempdir().unwrap();
    let dev = Dev::start(dir.path());
    fs::write(dir.path().join("f.jsonl"), "{\"n\":1}\n").unwrap();
    dev.run(dir.path(), &["propose", "--file", "f.jsonl", "--remember-days", "1"]).succeeds();
    let noted = fs::read_to_string(dir.path().join("f.jsonl.concordat")).unwrap();
    let remembered: Value = serde_json::from_str(&noted).unwrap();
    let ahead = remembered["deadline_ms"].as_u64().unwrap() - wall_ms();
    assert!((80_000_000..=86_400_000).contains(&ahead), "{noted}");
    let again = dev.run(dir.path(), &["propose", "--file", "f.jsonl", "--remember-days", "300"]).succeeds();
    assert!(again.stdout.contains("\"repeated\":true"), "{}", again.stdout);
    assert_eq!(fs::read_to_string(dir.path().join("f.jsonl.concordat")).unwrap(), noted);
    // `dev` keeps the same note of the same file.
    let noted = fs::read_to_string(dir.path().join("one.jsonl.concordat")).unwrap();
    let as_dev = dev.run(dir.path(), &["propose", "--file", "one.jsonl"]).succeeds();
    assert!(as_dev.stdout.contains("\"repeated\":true"), "{}", as_dev.stdout);
    assert_eq!(fs::read_to_string(dir.path().join("one.jsonl.concordat")).unwrap(), noted);
}

#[test]
fn an_audit_under_load_proves_all_that_was_committed_when_it_began() {
    let dir = tempdir().unwrap();
    let dev = Dev::start(dir.path());
    let lines: String = (0..3_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    fs::write(dir.path().join("f.jsonl"), lines).unwrap();
    std::thread::scope(|scope| {
        let node = dev.first_node();
        let propose = ["--node", node, "propose", "--file", "f.jsonl", "--concurrency", "256"];
        let path = dir.path();
        let load = scope.spawn(move || run(path, &propose));
        let mut audits = 0;
        while !load.is_finished() || audits == 0 {
            let audit = ["--json", "audit", "--genesis", "d/genesis.json", "--node", node];
            let audit = run(dir.path(), &audit).succeeds();
            let audit: Value = serde_json::from_str(&audit.stdout).unwrap();
            assert_eq!((&audit["verified"], &audit["beyond"]), (&json!(true), &json!(0)), "{audit}");
            audits += 1;
        }
        load.join().unwrap().succeeds();
    });
}
