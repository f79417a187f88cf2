//! What needs no running node.

use crate::certificates::{Cluster, autos};
use crate::support::{genesis, init, run, three};
use concordat::certificate::{Genesis, Member};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tempfile::tempdir;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_keeps_the_keys_private_and_prints_the_public_file_that_it_saves() {
    let dir = tempdir().unwrap();
    let ran = run(dir.path(), &["init", "--data", "a", "--address", "127.0.0.1:7001", "--policy", "manual"]).succeeds();
    let saved = fs::read_to_string(dir.path().join("a/member.json")).unwrap();
    assert_eq!(ran.stdout.trim(), saved.trim());
    let member: Member = serde_json::from_str(&saved).unwrap();
    member.bls_key.verify_possession(&member.possession).unwrap();
    assert_eq!(member.address, "127.0.0.1:7001");
    assert_eq!(mode(&dir.path().join("a")), 0o700);
    assert_eq!(mode(&dir.path().join("a/identity.pem")), 0o600);
    assert_eq!(mode(&dir.path().join("a/store")), 0o700);
}

#[test]
fn init_refuses_a_directory_that_holds_a_member() {
    let dir = tempdir().unwrap();
    let member = init(dir.path(), "a", 7001);
    let before = fs::read(&member).unwrap();
    run(dir.path(), &["init", "--data", "a", "--address", "127.0.0.1:7001"]).fails_with(&["already holds a member"]);
    assert_eq!(fs::read(&member).unwrap(), before);
}

#[test]
fn an_interrupted_init_is_finished_by_the_next_with_the_same_keys() {
    let dir = tempdir().unwrap();
    let path = init(dir.path(), "a", 7001);
    let member: Member = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // As if it had stopped before its last step, and before its second.
    fs::remove_file(&path).unwrap();
    init(dir.path(), "a", 7009);
    let again: Member = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((again.did, again.bls_key), (member.did, member.bls_key));
    assert_eq!(again.address, "127.0.0.1:7009");
    fs::remove_file(&path).unwrap();
    fs::remove_dir_all(dir.path().join("a/store")).unwrap();
    init(dir.path(), "a", 7001);
    let third: Member = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(third.did, member.did);
    assert_ne!(third.bls_key, member.bls_key, "a new store is a new memory, so a new key");
}

#[test]
fn a_wrong_address_is_refused_and_does_not_block_the_next_try() {
    let dir = tempdir().unwrap();
    run(dir.path(), &["init", "--data", "a", "--address", "nowhere"]).fails_with(&["nowhere", "HOST:PORT"]);
    init(dir.path(), "a", 7001);
}

#[test]
fn init_refuses_an_identity_that_others_can_read() {
    let dir = tempdir().unwrap();
    let member = init(dir.path(), "a", 7001);
    fs::remove_file(member).unwrap();
    let identity = dir.path().join("a/identity.pem");
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o644)).unwrap();
    run(dir.path(), &["init", "--data", "a", "--address", "127.0.0.1:7001"]).fails_with(&["chmod 600"]);
}

#[test]
fn genesis_puts_members_together_and_never_overwrites_another() {
    let dir = tempdir().unwrap();
    three(dir.path());
    let path = dir.path().join("genesis.json");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(Genesis::from_json(&text).unwrap().table.members().len(), 3);
    // The same members in another order are the same genesis.
    genesis(dir.path(), "genesis.json", &["c", "a", "b"]).succeeds();
    genesis(dir.path(), "genesis.json", &["a"]).fails_with(&["genesis.json exists and is different"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn genesis_warns_of_sizes_that_cannot_replace_a_member() {
    let dir = tempdir().unwrap();
    three(dir.path());
    let two = genesis(dir.path(), "two.json", &["a", "b"]).succeeds();
    assert!(two.stderr.contains("warning: with 2 members"), "{}", two.stderr);
    let three = run(
        dir.path(),
        &["genesis", "--name", "t", "--quorum", "supermajority", "--out", "s.json"]
            .into_iter()
            .chain(["--member", "a/member.json", "--member", "b/member.json", "--member", "c/member.json"])
            .collect::<Vec<_>>(),
    )
    .succeeds();
    assert!(three.stderr.contains("warning: with 3 members"), "{}", three.stderr);
}

#[test]
fn genesis_refuses_a_tampered_member_and_one_twice() {
    let dir = tempdir().unwrap();
    three(dir.path());
    genesis(dir.path(), "x.json", &["a", "a"]).fails_with(&["stands in two rows"]);
    let path = dir.path().join("b/member.json");
    let mut member: Member = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let other: Member = serde_json::from_slice(&fs::read(dir.path().join("a/member.json")).unwrap()).unwrap();
    member.possession = other.possession;
    fs::write(&path, serde_json::to_vec(&member).unwrap()).unwrap();
    genesis(dir.path(), "x.json", &["a", "b"]).fails_with(&["proof of possession"]);
    fs::write(&path, "{}").unwrap();
    genesis(dir.path(), "x.json", &["a", "b"]).fails_with(&["b/member.json", "missing field"]);
    assert!(!dir.path().join("x.json").exists());
}

/// A genesis file and a good receipt in both forms.
fn receipts(dir: &Path) -> Vec<u8> {
    let mut cluster = Cluster::new(autos(1..4));
    let index = cluster.propose(br#"{"op":"set_config","key":"k","value":1}"#);
    fs::write(dir.join("genesis.json"), cluster.genesis.to_json()).unwrap();
    let receipt = cluster.receipt(index);
    fs::write(dir.join("good.bin"), receipt.encode()).unwrap();
    fs::write(dir.join("good.json"), receipt.to_json()).unwrap();
    receipt.encode()
}

#[test]
fn verify_accepts_a_receipt_in_both_forms() {
    let dir = tempdir().unwrap();
    receipts(dir.path());
    let ran = run(dir.path(), &["verify", "--genesis", "genesis.json", "good.bin", "good.json"]).succeeds();
    assert_eq!(ran.stdout.lines().count(), 2);
    assert!(ran.stdout.lines().all(|l| l.starts_with("ok ") && l.contains("entry 2 (proposal)")), "{}", ran.stdout);
    let ran = run(dir.path(), &["--json", "verify", "--genesis", "genesis.json", "good.bin"]).succeeds();
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&answer["verified"], &answer["certificate"]["index"]), (&true.into(), &2.into()));
}

#[test]
fn verify_names_each_flawed_file_and_its_flaw_and_still_judges_the_others() {
    let dir = tempdir().unwrap();
    let mut bytes = receipts(dir.path());
    let last = bytes.len() / 2;
    bytes[last] ^= 1;
    fs::write(dir.path().join("bad.bin"), &bytes).unwrap();
    fs::write(dir.path().join("empty"), b"").unwrap();
    let ran = run(dir.path(), &["verify", "--genesis", "genesis.json", "bad.bin", "empty", "missing", "good.bin"])
        .fails_with(&["3 of 4 receipts prove nothing"]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("FLAW  bad.bin: ") && lines[1].starts_with("FLAW  empty: "), "{}", ran.stdout);
    assert!(lines[2].starts_with("FLAW  missing: cannot read") && lines[3].starts_with("ok    good.bin"));
}

#[test]
fn verify_trusts_the_genesis_given_and_no_other() {
    let dir = tempdir().unwrap();
    receipts(dir.path());
    fs::write(dir.path().join("other.json"), Cluster::new(autos(4..7)).genesis.to_json()).unwrap();
    run(dir.path(), &["verify", "--genesis", "other.json", "good.bin"]).fails_with(&["1 of 1 receipts prove nothing"]);
    let altered = fs::read_to_string(dir.path().join("genesis.json")).unwrap().replace("synthetic", "different");
    fs::write(dir.path().join("altered.json"), altered).unwrap();
    run(dir.path(), &["verify", "--genesis", "altered.json", "good.bin"]).fails_with(&["the file was altered"]);
    run(dir.path(), &["verify", "--genesis", "nowhere.json", "good.bin"]).fails_with(&["nowhere.json"]);
}

#[test]
fn audit_of_an_empty_store_passes_and_of_another_clusters_store_does_not_start() {
    let dir = tempdir().unwrap();
    three(dir.path());
    let ran = run(dir.path(), &["audit", "--genesis", "genesis.json", "--data", "a"]).succeeds();
    assert!(ran.stdout.contains("entries    0"), "{}", ran.stdout);
    run(dir.path(), &["audit", "--genesis", "genesis.json", "--data", "nowhere"]).fails_with(&["no store"]);
    run(dir.path(), &["audit", "--genesis", "genesis.json", "--data", "a", "--node", "http://127.0.0.1:1"])
        .fails_as(2, &["exclude each other"]);
}

#[test]
fn serve_refuses_before_it_touches_anything() {
    let dir = tempdir().unwrap();
    three(dir.path());
    init(dir.path(), "stranger", 7004);
    let serve = |data: &str, http: &str, more: &[&str]| {
        let mut arguments =
            vec!["serve", "--data", data, "--genesis", "genesis.json", "--listen", "127.0.0.1:0", "--http", http];
        arguments.extend(more);
        run(dir.path(), &arguments)
    };
    serve("a", "0.0.0.0:0", &[]).fails_with(&["loopback"]);
    serve("stranger", "127.0.0.1:0", &[]).fails_with(&["is not a member of cluster"]);
    serve("nowhere", "127.0.0.1:0", &[]).fails_with(&["nowhere"]);
    fs::write(dir.path().join("c.toml"), "[consensus]\nheartbeat_ms = 0\n").unwrap();
    serve("a", "127.0.0.1:0", &["--config", "c.toml"]).fails_with(&["consensus.heartbeat_ms = 0"]);
    fs::write(dir.path().join("c.toml"), "[consensus]\nheart = 1\n").unwrap();
    serve("a", "127.0.0.1:0", &["--config", "c.toml"]).fails_with(&["c.toml", "heart"]);
    fs::set_permissions(dir.path().join("a/identity.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    serve("a", "127.0.0.1:0", &[]).fails_with(&["chmod 600"]);
}

#[test]
fn a_node_that_is_not_there_is_one_clear_line() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("f.jsonl"), "{}\n").unwrap();
    for arguments in [&["status"][..], &["propose", "{}"], &["propose", "--file", "f.jsonl"], &["get", "entry", "1"]] {
        let mut all = vec!["--node", "http://127.0.0.1:9"];
        all.extend(arguments);
        let ran = run(dir.path(), &all).fails_with(&["no node answered", "is a node running at http://127.0.0.1:9"]);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    run(dir.path(), &["--node", "ftp://x", "status"]).fails_with(&["ftp://x"]);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let dir = tempdir().unwrap();
    for arguments in [
        &["propose"][..],
        &["propose", "{}", "--file", "f"],
        &["vote", "1-1-did:key:x", "--grant"],
        &["vote", "--grant", "--deny"],
        &["find", "--status", "asleep"],
        &["bench", "--clients", "0"],
        &["watch", "ballots", "--from", "3"],
    ] {
        assert_eq!(run(dir.path(), arguments).code, Some(2), "{arguments:?}");
    }
    run(dir.path(), &["propose", "not json"]).fails_with(&["the payload is not JSON"]);
}
