//! A member whose store is damaged takes part with it no more, begins anew, and is admitted again.

use crate::hosts::Hosts;
use crate::{Members, change, did, leader, row, until};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::RwLock;

const VALUE: &str = "a value that is easily found on the disk";

/// Flips a bit in every place of the database where an entry's payload was ever written.
fn flip(store: &Path) {
    let db = store.join("db");
    let mut bytes = std::fs::read(&db).expect("the database");
    let places: Vec<usize> =
        bytes.windows(VALUE.len()).enumerate().filter(|(_, w)| *w == VALUE.as_bytes()).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "payloads stand in the database as they are");
    for at in places {
        bytes[at] ^= 4;
    }
    std::fs::write(db, bytes).expect("written");
}

fn lose(store: &Path) {
    std::fs::remove_file(store.join("db")).expect("removed");
}

fn key(hosts: &Hosts, n: usize) -> String {
    let member = std::fs::read_to_string(hosts.member_file(n)).expect("member.json");
    serde_json::from_str::<Value>(&member).expect("JSON")["bls_key"].as_str().expect("a key").to_owned()
}

fn propose(hosts: &Hosts, n: usize, value: u64) {
    let payload = json!({"op": "set_config", "key": "k", "value": format!("{VALUE} {value}")}).to_string();
    // The deadline of the first try, as every retry must bear it.
    let deadline = concordat::node::clock::wall_ms().saturating_add(24 * 3600 * 1000).to_string();
    let id = value.to_string();
    until("an entry is certified", || {
        let request = ["propose", &payload, "--request-id", &id, "--deadline-ms", &deadline];
        let told = hosts.told(n, &request)?;
        (told["state"] == "certified").then_some(())
    });
}

/// What `doctor` says of a stopped node, and its exit code.
fn examine(hosts: &Hosts, n: usize) -> (Option<i32>, Value) {
    let data = hosts.data(n).display().to_string();
    let examined = hosts.ask(n, &["doctor", "--data", &data]);
    let said = String::from_utf8_lossy(&examined.stderr);
    assert!(!said.contains("panicked"), "{said}");
    (examined.status.code(), serde_json::from_slice(&examined.stdout).expect("JSON"))
}

/// The store is refused, looked at, set aside; the member is admitted again with a fresh key.
fn begin_anew(hosts: &Hosts, members: &Members, n: usize) {
    let (refused, old) = (hosts.serve(n), key(hosts, n));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("concordat init --rejoin") && said.contains("concordat doctor"), "{said}");
    let (code, told) = examine(hosts, n);
    assert_eq!((code, &told["sound"]), (Some(1), &json!(false)), "{told}");
    let data = hosts.data(n).display().to_string();
    let anew = hosts.told(n, &["init", "--rejoin", "--data", &data]).expect("it begins anew");
    assert!(Path::new(anew["set_aside"].as_str().expect("where the old store lies")).join("watermark").exists());
    assert_eq!(anew["commands"].as_array().map(Vec::len), Some(3));
    let (fresh, id) = (key(hosts, n), did(hosts, n));
    assert_ne!(fresh, old);
    assert_eq!(hosts.serve(n).status.code(), Some(1), "not before it is admitted, unless it waits for that");
    hosts.start(n, &["--join"]);
    let named = |rows: &Value, role: &str| row(rows, &id).is_some_and(|r| r["bls_key"] == *fresh && r["role"] == role);
    change(hosts, members, &["add", &hosts.member_file(n)], |rows| named(rows, "learner"));
    change(hosts, members, &["promote", &id], |rows| named(rows, "voter"));
}

#[test]
fn a_member_with_a_damaged_store_refuses_to_vote_begins_anew_and_takes_part_again() {
    let mut hosts = Hosts::new(false);
    for _ in 0..3 {
        hosts.init();
    }
    hosts.make_genesis();
    let members = Members(RwLock::new(vec![0, 1, 2]));
    for n in 0..3 {
        hosts.start(n, &[]);
    }
    let genesis = hosts.genesis().display().to_string();
    let mut value = 0;
    for damage in [flip, lose] {
        for _ in 0..10 {
            value += 1;
            propose(&hosts, leader(&hosts, &members), value);
        }
        let victim = (leader(&hosts, &members) + 1) % 3;
        hosts.stop(victim, false);
        damage(&hosts.data(victim).join("store"));
        begin_anew(&hosts, &members, victim);
        // Without the third, what is certified is so by its vote and its fresh key.
        let third = (0..3).find(|n| *n != victim && *n != leader(&hosts, &members)).expect("a third");
        hosts.stop(third, false);
        value += 1;
        propose(&hosts, victim, value);
        let audited = hosts.ask(victim, &["audit", "--genesis", &genesis]);
        assert!(audited.status.success(), "{}", String::from_utf8_lossy(&audited.stderr));
        hosts.start(third, &[]);
    }
    for n in 0..3 {
        hosts.stop(n, false);
        let (code, told) = examine(&hosts, n);
        assert_eq!((code, &told["sound"]), (Some(0), &json!(true)), "{told}");
        assert!(told["examination"]["verified"].as_u64() > Some(0), "by the tables of every epoch: {told}");
    }
}
