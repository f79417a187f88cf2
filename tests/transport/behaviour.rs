//! What members get.

use crate::support::*;
use concordat::certificate::Request;
use concordat::core::Submission;
use concordat::ids::NodeId;
use concordat::transport::{BindError, Options, Sent, Stats, Transport};
use concordat::wire::{Frame, Lane};
use std::net::UdpSocket;
use std::time::Duration;

fn submission(handle: u64) -> Frame {
    let request = Request { client: "c".into(), request_id: "r".into(), deadline_ms: 1 };
    let submission = Submission {
        origin: NodeId([1; 32]),
        request,
        salt: [0; 16],
        payload: vec![1; 100],
        required_quorum: None,
        ttl_ms: 1,
    };
    Frame::Submit { handle, submission }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_in_order_on_every_lane_and_bear_their_senders_did() {
    let [mut a, mut b] = cluster(&Options::default()).await;
    let make: [fn(u64) -> Frame; 3] = [heartbeat, |n| ballot(n, 2000), submission];
    for n in 0..300 {
        for frame in make {
            a.send(&b.id(), &frame(n)).await;
            b.send(&a.id(), &frame(n)).await;
        }
    }
    let (id_a, id_b) = (a.id(), b.id());
    for (node, from) in [(&mut a, id_b), (&mut b, id_a)] {
        let mut next = [0; 3];
        while next != [300; 3] {
            let incoming = node.recv().await;
            assert_eq!(incoming.from, from);
            let expected = &mut next[usize::from(incoming.frame.lane().tag())];
            assert_eq!(incoming.frame, make[usize::from(incoming.frame.lane().tag())](*expected));
            *expected += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_is_the_first_frame_of_a_connection() {
    let (a, mut b) = (node(Options::default()).await, node(Options::default()).await);
    a.transport.set_members(vec![b.peer()]);
    b.transport.set_members(vec![a.peer()]);
    let first = within("a frame", b.inbox.recv()).await.expect("open");
    assert_eq!((first.from, first.frame), (a.id(), hello("test")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_in_order_is_found_again() {
    let [a, b] = cluster(&Options::default()).await;
    let (address, peer_b) = (b.transport.local_addr(), b.id());
    b.transport.close().await;
    eventually("the loss to be noticed", || !a.transport.connected(&peer_b)).await;
    assert_eq!(a.transport.send(peer_b, heartbeat(1)), Sent::NotConnected);
    let members = vec![a.peer()];
    let (transport, inbox) = Transport::bind(&b.identity, address, members, hello("again"), Options::default())
        .await
        .expect("the port is free");
    let mut again = Node { dir: b.dir, identity: b.identity, transport, inbox };
    a.send(&peer_b, &heartbeat(2)).await;
    assert_eq!(again.recv().await.frame, heartbeat(2));
}

/// A killed process says no goodbye. What comes back under the same identity answers packets of its former life with a
/// reset, so that the peer need not wait for the idle timeout (here: an hour).
#[test]
fn a_peer_that_was_killed_is_found_again_without_waiting_for_a_timeout() {
    let options = Options {
        idle_timeout: Duration::from_secs(3600),
        keep_alive: Duration::from_millis(20),
        ..Options::default()
    };
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (survivor, victim) = (runtime(), runtime());
    let a = survivor.block_on(node(options.clone()));
    let b = victim.block_on(node(options.clone()));
    let (address, peer_b) = (b.transport.local_addr(), b.id());
    a.transport.set_members(vec![b.peer()]);
    b.transport.set_members(vec![a.peer()]);
    survivor.block_on(eventually("both connections", || {
        a.transport.connected(&peer_b) && a.transport.stats().incoming == 1
    }));
    let identity = b.identity;
    // No task of the victim runs any more, so nothing is said; the socket goes with its runtime.
    victim.shutdown_timeout(DEADLINE);
    drop((b.transport, b.inbox));
    assert!(a.transport.connected(&peer_b), "the survivor cannot know yet");
    survivor.block_on(async {
        let (transport, inbox) = Transport::bind(&identity, address, vec![a.peer()], hello("again"), options)
            .await
            .expect("the port is free");
        let mut again = Node { dir: b.dir, identity, transport, inbox };
        let hello = within("the survivor to come back", again.inbox.recv()).await.expect("open");
        assert_eq!(hello.from, a.id());
        a.send(&peer_b, &heartbeat(7)).await;
        assert_eq!(again.recv().await.frame, heartbeat(7));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_overtakes_appends_that_nobody_reads() {
    let options = Options { append_queue: 4, ..Options::default() };
    let [a, mut b] = cluster(&options).await;
    // Fill everything between the two: inbox, stream window, queue.
    let mut queued = 0;
    let mut refused_in_a_row = 0;
    within("the append lane to fill", async {
        while refused_in_a_row < 20_000 {
            match a.transport.send(b.id(), ballot(queued, 60_000)) {
                Sent::Queued => (queued, refused_in_a_row) = (queued + 1, 0),
                Sent::QueueFull => refused_in_a_row += 1,
                other => panic!("{other:?}"),
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The greeting, what the inbox holds of the lane, and one that waits to enter: more is not read.
    let stuck = 1 + 4 + 1;
    eventually("the reader to be stuck", || b.transport.stats().frames_received == stuck).await;
    assert!(queued > stuck, "frames wait on the way");
    for n in 0..10 {
        assert_eq!(a.transport.send(b.id(), heartbeat(n)), Sent::Queued);
    }
    eventually("the heartbeats to arrive", || b.transport.stats().frames_received >= stuck + 10).await;
    assert_eq!(b.transport.stats().frames_received, stuck + 10, "nothing but the heartbeats moved");
    for n in 0..10 {
        assert_eq!(b.recv().await.frame, heartbeat(n), "before every append that came earlier");
    }
    for n in 0..queued {
        assert_eq!(number_of(&b.recv().await.frame), Some(n), "no append is lost or out of order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_control_frames_does_not_starve_the_other_lanes() {
    let [a, mut b] = cluster(&Options::default()).await;
    within("the greeting", b.inbox.recv()).await;
    let before = b.transport.stats().frames_received;
    for n in 0..500 {
        a.send(&b.id(), &heartbeat(n)).await;
    }
    a.send(&b.id(), &ballot(0, 10)).await;
    eventually("all frames", || b.transport.stats().frames_received >= before + 501).await;
    let mut position = 0;
    while b.recv().await.frame.lane() != Lane::Append {
        position += 1;
    }
    assert!(position <= 64, "delivered after {position} control frames");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_as_large_as_allowed_pass_and_larger_ones_are_dropped_at_the_sender() {
    let [a, mut b] = cluster(&Options::default()).await;
    let largest = ballot(1, concordat::limits::MAX_PAYLOAD);
    a.send(&b.id(), &ballot(0, concordat::limits::MAX_PAYLOAD + 1)).await;
    a.send(&b.id(), &largest).await;
    assert_eq!(b.recv().await.frame, largest);
    assert_eq!(a.transport.stats().frames_dropped, 1);
    assert!(a.transport.connected(&b.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_cut_off_and_a_returning_one_let_in() {
    let [a, b, c] = cluster(&Options::default()).await;
    a.transport.set_members(vec![b.peer()]);
    eventually("the removed member to be cut off", || {
        a.transport.stats().incoming == 1 && !c.transport.connected(&a.id()) && !a.transport.connected(&c.id())
    })
    .await;
    assert_eq!(a.transport.send(c.id(), heartbeat(1)), Sent::NotAMember);
    assert!(a.transport.connected(&b.id()), "the others are untouched");
    let refused = a.transport.stats().connections_refused;
    eventually("the removed member to be refused", || a.transport.stats().connections_refused > refused).await;
    a.transport.set_members(vec![b.peer(), c.peer()]);
    eventually("the member to be back", || a.transport.connected(&c.id()) && c.transport.connected(&a.id())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_dialed_at_its_new_address() {
    let [a, b] = cluster(&Options::default()).await;
    b.transport.close().await;
    let (transport, inbox) = Transport::bind(&b.identity, LOOPBACK, vec![a.peer()], hello("moved"), Options::default())
        .await
        .expect("a port");
    let mut moved = Node { dir: b.dir, identity: b.identity, transport, inbox };
    a.transport.set_members(vec![moved.peer()]);
    a.send(&moved.id(), &heartbeat(1)).await;
    assert_eq!(moved.recv().await.frame, heartbeat(1));
}

#[tokio::test(flavor = "current_thread")]
async fn close_ends_every_task_and_frees_the_port() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let [mut a, b, c] = cluster(&Options::default()).await;
    assert!(metrics.num_alive_tasks() > before);
    let address = a.transport.local_addr();
    let clone = a.transport.clone();
    within("both closes", async { tokio::join!(a.transport.close(), clone.close()) }).await;
    assert_eq!(a.transport.stats().tasks, 0);
    drop(UdpSocket::bind(address).expect("the port is free again"));
    while within("the end", a.inbox.recv()).await.is_some() {}
    assert_eq!(a.transport.send(b.id(), heartbeat(1)), Sent::NotConnected);
    a.transport.set_members(vec![b.peer(), c.peer()]);
    assert_eq!(a.transport.stats().tasks, 0, "a closed transport starts nothing");
    b.transport.close().await;
    c.transport.close().await;
    assert_eq!(b.transport.stats().tasks, 0);
    eventually("QUIC's own tasks to end", || metrics.num_alive_tasks() == before).await;
}

#[tokio::test(flavor = "current_thread")]
async fn dropping_the_last_clone_ends_every_task() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let nodes: [Node; 2] = cluster(&Options::default()).await;
    drop(nodes);
    eventually("all tasks to end", || metrics.num_alive_tasks() == before).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_taken_port_is_an_error_that_names_it() {
    let taken = UdpSocket::bind(LOOPBACK).expect("a port");
    let address = taken.local_addr().expect("bound");
    let (_dir, identity) = identity();
    let error = Transport::bind(&identity, address, Vec::new(), hello("x"), Options::default()).await.err();
    assert!(matches!(error, Some(BindError::InUse { address: a }) if a == address), "{error:?}");
    assert!(error.expect("just matched").to_string().contains(&address.to_string()));
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_be_sent_is_counted() {
    let (a, b) = (node(Options::default()).await, node(Options::default()).await);
    assert_eq!(a.transport.send(b.id(), heartbeat(1)), Sent::NotAMember);
    a.transport.set_members(vec![a.peer(), b.peer()]);
    assert_eq!(a.transport.send(b.id(), heartbeat(1)), Sent::NotConnected);
    assert_eq!(a.transport.send(a.id(), heartbeat(1)), Sent::NotAMember, "a node is no peer of itself");
    let Stats { frames_dropped, frames_sent, .. } = a.transport.stats();
    assert_eq!((frames_dropped, frames_sent), (3, 0));
}
