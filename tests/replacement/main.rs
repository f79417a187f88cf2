//! Five nodes are replaced one by one, under load, until none of the first remains; leaders and followers are killed on the
//! way. Nothing that was acknowledged is lost, and the audit passes from the first genesis to the last entry.
//!
//! On loopback by default. `REPLACEMENT_NAMESPACES=1` (as root) puts every node into a network namespace of its own and
//! pulls cables besides.

mod hosts;
#[path = "../support/ports.rs"]
mod ports;
mod rejoin;

use hosts::{Hosts, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};

const FIRST: usize = 5;
const WRITERS: usize = 3;

/// Members that the writers may use.
struct Members(RwLock<Vec<usize>>);

impl Members {
    fn all(&self) -> Vec<usize> {
        self.0.read().expect("no panic").clone()
    }
}

/// Asks members one after another until one answers.
fn anyone<T>(hosts: &Hosts, members: &Members, what: &str, mut ask: impl FnMut(&Hosts, usize) -> Option<T>) -> T {
    until(what, || members.all().into_iter().find_map(|n| ask(hosts, n)))
}

fn leader(hosts: &Hosts, members: &Members) -> usize {
    anyone(hosts, members, "a leader", |hosts, n| (hosts.status(n)?["role"] == "leader").then_some(n))
}

fn did(hosts: &Hosts, n: usize) -> String {
    let member: Value =
        serde_json::from_str(&std::fs::read_to_string(hosts.member_file(n)).expect("member.json")).expect("JSON");
    member["did"].as_str().expect("a DID").to_owned()
}

/// Makes a change at the leader, again until it is in force: an answer may be lost with a leader that is killed.
fn change(hosts: &Hosts, members: &Members, arguments: &[&str], is_made: impl Fn(&Value) -> bool) {
    until(&format!("member {}", arguments.join(" ")), || {
        let leads = leader(hosts, members);
        let asked = hosts.ask(leads, &[&["member"][..], arguments].concat());
        let table = hosts.told(leads, &["member", "list"])?;
        let made = table["next"].is_null() && table["members"].as_array().is_some_and(|rows| is_made(&json!(rows)));
        assert!(made || !asked.status.success(), "a change that succeeded is in force");
        made.then_some(())
    });
}

fn row<'a>(rows: &'a Value, did: &str) -> Option<&'a Value> {
    rows.as_array()?.iter().find(|r| r["did"] == did)
}

/// Writes values to a key of its own, each until it is certified, through whichever member answers.
fn write(hosts: &Hosts, members: &Members, writer: usize, stop: &AtomicBool, written: &Mutex<Vec<(u64, u64)>>) {
    let deadline = &concordat::node::clock::wall_ms().saturating_add(24 * 3600 * 1000).to_string();
    let mut value = 0;
    while !stop.load(Ordering::Relaxed) {
        value += 1;
        let payload = json!({"op": "set_config", "key": format!("w{writer}"), "value": value}).to_string();
        let id = format!("{writer}-{value}");
        // The deadline of the first try, as every retry must bear it.
        let request = ["propose", &payload, "--request-id", &id, "--deadline-ms", deadline];
        let index = until("a write is certified", || {
            let all = members.all();
            let through = all[(writer + value as usize) % all.len()];
            let answer = hosts.told(through, &request).or_else(|| hosts.told(all[0], &request))?;
            (answer["state"] == "certified").then(|| answer["index"].as_u64()).flatten()
        });
        written.lock().expect("no panic").push((value, index));
    }
}

/// Kills a member outright, or cuts it off for a while; the writers go on.
fn disturb(hosts: &Hosts, members: &Members, round: usize) {
    let leads = leader(hosts, members);
    let all = members.all();
    let follower = all.iter().copied().find(|n| *n != leads).expect("a follower");
    let victim = if round.is_multiple_of(2) { leads } else { follower };
    hosts.stop(victim, true);
    hosts.start(victim, &[]);
    let before = leader(hosts, members);
    if hosts.connect(follower, false) {
        let others = Members(RwLock::new(all.into_iter().filter(|n| *n != follower).collect()));
        leader(hosts, &others);
        hosts.connect(follower, true);
    }
    let applied = hosts.status(before).and_then(|s| s["applied_index"].as_u64()).unwrap_or_default();
    until("the disturbed have caught up", || {
        let caught_up = |n| Some(hosts.status(n)?["applied_index"].as_u64()? >= applied);
        (caught_up(victim)? && caught_up(follower)?).then_some(())
    });
}

fn replace(hosts: &Hosts, members: &Members, old: usize, new: usize) {
    hosts.start(new, &["--join"]);
    // The one that goes may be the leader that makes the change.
    let everyone = Members(RwLock::new([&members.all()[..], &[new]].concat()));
    let (gone, come, file) = (did(hosts, old), did(hosts, new), hosts.member_file(new));
    change(hosts, &everyone, &["add", &file], |rows| row(rows, &come).is_some());
    change(hosts, &everyone, &["promote", &come], |rows| row(rows, &come).is_some_and(|r| r["role"] == "voter"));
    {
        let mut members = members.0.write().expect("no panic");
        members.push(new);
        members.retain(|n| *n != old);
    }
    change(hosts, &everyone, &["remove", &gone], |rows| row(rows, &gone).is_none());
    until("the removed member knows that it may stop", || (hosts.status(old)?["safe_to_stop"] == true).then_some(()));
    hosts.stop(old, false);
}

#[test]
fn five_nodes_are_replaced_one_by_one_under_load_and_nothing_is_lost() {
    let namespaces = std::env::var_os("REPLACEMENT_NAMESPACES").is_some();
    let mut hosts = Hosts::new(namespaces);
    for _ in 0..FIRST {
        hosts.init();
    }
    hosts.make_genesis();
    for _ in 0..FIRST {
        hosts.init();
    }
    let members = Members(RwLock::new((0..FIRST).collect()));
    for n in 0..FIRST {
        hosts.start(n, &[]);
    }
    leader(&hosts, &members);
    let (stop, written) = (AtomicBool::new(false), [(); WRITERS].map(|()| Mutex::new(Vec::new())));
    std::thread::scope(|scope| {
        for (writer, written) in written.iter().enumerate() {
            let (hosts, members, stop) = (&hosts, &members, &stop);
            scope.spawn(move || write(hosts, members, writer, stop, written));
        }
        let stop = StopAtEnd(&stop);
        for old in 0..FIRST {
            replace(&hosts, &members, old, FIRST + old);
            disturb(&hosts, &members, old);
        }
        drop(stop);
    });
    let last: Vec<usize> = members.all();
    assert_eq!(BTreeSet::from_iter(last.iter().copied()), (FIRST..2 * FIRST).collect(), "none of the first remains");
    for (writer, written) in written.iter().enumerate() {
        let written = written.lock().expect("no panic");
        assert!(written.len() > FIRST, "writer {writer} wrote through all of it");
        let indexes: Vec<u64> = written.iter().map(|w| w.1).collect();
        for n in &last {
            let history = hosts.ask(*n, &["history", "config", &format!("w{writer}")]);
            let entries = String::from_utf8(history.stdout).expect("UTF-8");
            let index = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["index"].as_u64();
            let found: Vec<u64> = entries.lines().filter_map(index).collect();
            assert_eq!(found, indexes, "node {n}: every write of writer {writer}, once, in order");
        }
    }
    let genesis = hosts.genesis().display().to_string();
    for n in &last {
        let audit = hosts.ask(*n, &["audit", "--genesis", &genesis]);
        let said = String::from_utf8_lossy(&audit.stderr);
        assert!(audit.status.success(), "node {n}: {said}");
        assert!(hosts.status(*n).is_some_and(|s| s["epoch"].as_u64() >= Some(3 * FIRST as u64)));
    }
}

/// Lets the writers end also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
