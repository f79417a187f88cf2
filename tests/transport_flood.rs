//! Ten thousand hostile attempts leave nothing behind. Alone in its process: it counts tasks, file descriptors and
//! memory.

#[path = "transport/support.rs"]
mod support;

use concordat::transport::{ALPN, Options};
use std::net::{SocketAddr, UdpSocket};
use support::*;

/// Attempts of each of the two storms.
const GARBAGE: usize = 4_250;
const HANDSHAKES: usize = 750;
/// Handshakes tried at once; more than the node under attack takes.
const AT_ONCE: usize = 50;
/// What the allocator may keep after the first storm, attackers' side included.
const MAX_GROWTH: usize = 64 * 1024 * 1024;
/// What it may keep more after the second: memory that grows with every storm is lost, whatever the first one took.
const SLACK: usize = 8 * 1024 * 1024;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
}

/// Bytes that differ at every attempt: junk, half of it dressed up as the start of a QUIC connection.
fn junk(attempt: usize) -> Vec<u8> {
    let mut state = attempt as u64 + 1;
    let mut bytes: Vec<u8> = (0..64 + attempt % 1400)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect();
    if attempt.is_multiple_of(2) {
        bytes.resize(1200, 0);
        bytes[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
    }
    bytes
}

/// Every kind of intruder in turn.
fn intruder(attempt: usize, member: &str) -> quinn::ClientConfig {
    let key = ed25519();
    let own = did_of(&key).to_string();
    match attempt % 4 {
        0 => client_config(Some(Credentials::new(&key, &[own])), &[ALPN]),
        1 => client_config(Some(Credentials::new(&key, &[member.to_owned()])), &[ALPN]),
        2 => client_config(None, &[ALPN]),
        _ => client_config(Some(Credentials::new(&key, &[own])), &[b"h3"]),
    }
}

async fn storm(target: SocketAddr, member: &str, garbage: usize, handshakes: usize) {
    let socket = UdpSocket::bind(LOOPBACK).expect("a port");
    let intruders = client();
    let mut running = tokio::task::JoinSet::new();
    for attempt in 0..handshakes.max(garbage) {
        if attempt < garbage {
            socket.send_to(&junk(attempt), target).expect("loopback takes it");
        }
        if attempt < handshakes {
            if running.len() == AT_ONCE {
                running.join_next().await.expect("one runs").expect("no panic");
            }
            let (config, client) = (intruder(attempt, member), intruders.clone());
            running.spawn(async move {
                intrude(&client, config, target).await;
            });
        }
        tokio::task::yield_now().await;
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("no panic");
    }
    intruders.close(0u32.into(), b"");
    intruders.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hostile_attempts_leave_nothing_behind() {
    let options = Options { max_handshakes: 16, ..Options::default() };
    let [mut target, other] = cluster(&options).await;
    let (address, member) = (target.transport.local_addr(), other.id().to_string());
    // Allocators and runtimes keep what they once needed: the baseline is after a first, smaller storm.
    storm(address, &member, 500, 100).await;
    while target.inbox.try_recv().is_some() {}
    let metrics = tokio::runtime::Handle::current().metrics();
    let transport = target.transport.clone();
    eventually("the first storm to pass", || transport.stats().connections == 2).await;
    let (stats, files, memory, tasks) = (transport.stats(), open_files(), resident_bytes(), metrics.num_alive_tasks());

    let mut growth = Vec::new();
    for _ in 0..2 {
        let refused_before = transport.stats().connections_refused;
        storm(address, &member, GARBAGE, HANDSHAKES).await;
        eventually("the storm to pass", || transport.stats().connections == 2).await;
        eventually("every task of it to end", || metrics.num_alive_tasks() <= tasks).await;
        let after = transport.stats();
        assert_eq!((after.incoming, after.outgoing, after.tasks), (1, 1, stats.tasks));
        assert!(open_files() <= files, "{} open files, {files} before", open_files());
        let refused = usize::try_from(after.connections_refused - refused_before).expect("small");
        // An attempt may count twice: given up here, and its next packet taken for another attempt.
        assert!(refused >= HANDSHAKES, "{refused} of {HANDSHAKES} handshakes were counted as refused");
        growth.push(resident_bytes().saturating_sub(memory));
        println!("refused: {refused} handshakes, {} datagrams; growth {growth:?} bytes", after.datagrams_refused);
    }
    let [first, second] = growth[..] else { panic!("two storms") };
    assert!(first <= MAX_GROWTH, "memory grew by {first} bytes");
    assert!(second <= first + SLACK, "memory grew by {first} bytes, and by {} more", second - first);
    assert_eq!(target.inbox.try_recv(), None, "nothing got through");
    other.send(&target.id(), &heartbeat(1)).await;
    assert_eq!(target.recv().await.frame, heartbeat(1), "members are served as before");
}
