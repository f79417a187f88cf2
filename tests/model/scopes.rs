//! The scopes: where each begins, what may happen and how often, and what must be seen to happen.

use crate::cluster::{Cluster, Left, State};
use crate::members;
use crate::node::Event;
use concordat::certificate::{Genesis, MemberTable};
use concordat::core::{Crypto, Message};
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct Scope {
    pub(crate) name: &'static str,
    pub(crate) voters: &'static [usize],
    pub(crate) learners: &'static [usize],
    /// The voters and learners of the one membership change, if there is one.
    pub(crate) next: (&'static [usize], &'static [usize]),
    /// Leads from empty disks to where the exploration begins.
    pub(crate) opening: fn(&Cluster, State) -> State,
    pub(crate) left: Left,
    /// Whether whoever times out first asks whether it could win; or else stands at once.
    pub(crate) pre_votes: bool,
    /// Whether messages of one link arrive in the order in which they were sent, those overtaken being lost; or else in
    /// any order.
    pub(crate) ordered: bool,
    pub(crate) slow: fn(&Crypto) -> bool,
    pub(crate) muted: fn(&Message) -> bool,
    /// What must be reachable, by the names of `properties`.
    pub(crate) reaches: &'static [&'static str],
}

impl Scope {
    pub(crate) fn genesis(&self) -> Genesis {
        members::genesis(self.voters, self.learners)
    }

    pub(crate) fn next_table(&self) -> Arc<MemberTable> {
        Arc::new(members::table(self.next.0, self.next.1))
    }
}

// ---- openings ----

fn empty(_: &Cluster, state: State) -> State {
    state
}

/// n0 leads term 1; its first entry is committed and certified everywhere.
fn led(cluster: &Cluster, state: State) -> State {
    let state = cluster.force(&state, 0, Event::Timeout);
    cluster.settle(state, |_| false)
}

/// As `led`, and n2 has just come up again: it has not heard of the leader since, so nothing keeps it from voting. A first
/// proposal is in the leader's log and on its way.
fn proposed(cluster: &Cluster, state: State) -> State {
    let state = without_leftovers(led(cluster, state));
    let state = cluster.force(&state, 2, Event::Restart);
    cluster.force(&state, 0, Event::Submit(2))
}

/// As `led`, and the voters have granted a change: its entry is in the leader's log and on its way. Those that are not
/// candidates have just come up again, as in `proposed`.
fn changing(cluster: &Cluster, state: State) -> State {
    let state = led(cluster, state);
    let state = cluster.force(&state, 0, Event::Change(cluster.scope.next_table()));
    let mut state = cluster.settle(state, |s| s.nodes[0].node.core.tables().is_joint());
    assert!(state.nodes[0].node.core.tables().is_joint(), "the change was appended: {state:?}");
    state.mail.retain(|l| matches!(&l.message, Message::Append { entries, .. } if !entries.is_empty()));
    (2..state.nodes.len()).fold(state, |s, n| cluster.force(&s, n, Event::Restart))
}

fn without_leftovers(mut state: State) -> State {
    state.mail.clear();
    state
}

// ---- what takes time, what is lost ----

fn nothing_is_slow(_: &Crypto) -> bool {
    false
}

fn signing_is_slow(job: &Crypto) -> bool {
    matches!(job, Crypto::SignElection { .. } | Crypto::SignHead { .. })
}

fn nothing_is_muted(_: &Message) -> bool {
    false
}

fn no_head_is_certified(message: &Message) -> bool {
    matches!(message, Message::HeadShare { .. } | Message::Certificate(_))
}

// ---- the scopes ----

const THREE: &[usize] = &[0, 1, 2];

fn base(name: &'static str, size: usize) -> Scope {
    Scope {
        name,
        voters: THREE,
        learners: &[],
        next: (THREE, &[]),
        opening: empty,
        left: Left { elections: vec![0; size], beats: vec![0; size], crashes: vec![1; size], ..Left::default() },
        pre_votes: false,
        ordered: false,
        slow: nothing_is_slow,
        muted: nothing_is_muted,
        reaches: &[],
    }
}

/// Two candidates, one crash anywhere, messages in any order.
fn elections() -> Scope {
    let base = base("elections with a crash", 3);
    Scope {
        left: Left { elections: vec![1, 1, 0], crashes_in_all: 1, ..base.left },
        muted: no_head_is_certified,
        reaches: &[
            "a leader is elected",
            "two leaders at a time",
            "an entry is committed",
            "a node came back from a crash",
        ],
        ..base
    }
}

/// Two candidates that ask beforehand.
fn pre_votes() -> Scope {
    let base = base("elections with pre-votes", 3);
    Scope {
        left: Left { elections: vec![1, 1, 0], ..base.left },
        pre_votes: true,
        ordered: true,
        muted: no_head_is_certified,
        reaches: &["a leader is elected", "an entry is committed"],
        ..base
    }
}

/// Two candidates, and any one message arrives twice.
fn repeated_messages() -> Scope {
    let base = base("elections with a repeated message", 3);
    Scope {
        left: Left { elections: vec![1, 1, 0], repeats: 1, ..base.left },
        muted: no_head_is_certified,
        reaches: &["a leader is elected", "two leaders at a time", "an entry is committed"],
        ..base
    }
}

/// Heads are signed and certified, signing takes its time, and the leader changes meanwhile.
fn certificates() -> Scope {
    let base = base("certificates, slow signing and a leader change", 3);
    Scope {
        opening: proposed,
        left: Left { elections: vec![0, 1, 0], ..base.left },
        ordered: true,
        slow: signing_is_slow,
        reaches: &["a head is certified", "leaders of two terms"],
        ..base
    }
}

fn two_proposals() -> Scope {
    let base = base("two proposals and a leader change", 3);
    Scope {
        opening: proposed,
        left: Left { elections: vec![0, 1, 0], proposals: 1, ..base.left },
        ordered: true,
        muted: no_head_is_certified,
        reaches: &["leaders of two terms", "both proposals are committed", "a leader was overtaken"],
        ..base
    }
}

fn removal() -> Scope {
    let base = base("a removal, an election and a crash of the leader", 3);
    Scope {
        next: (&[0, 1], &[]),
        opening: changing,
        left: Left { elections: vec![0, 1, 0], crashes: vec![1, 0, 0], crashes_in_all: 1, ..base.left },
        ordered: true,
        reaches: &[
            "a change is in force",
            "a change is overwritten",
            "a leader was elected in the joint phase",
            "a node came back from a crash in the joint phase",
        ],
        ..base
    }
}

fn promotion() -> Scope {
    let base = base("a promotion and an election", 4);
    Scope {
        learners: &[3],
        next: (&[0, 1, 2, 3], &[]),
        opening: changing,
        left: Left { elections: vec![0, 1, 0, 0], ..base.left },
        ordered: true,
        reaches: &["a change is in force", "a change is overwritten", "a leader was elected in the joint phase"],
        ..base
    }
}

/// Explored to the end by every run of the tests.
pub(crate) fn gate() -> Vec<Scope> {
    vec![elections(), pre_votes(), repeated_messages(), certificates(), two_proposals(), removal()]
}

/// For a machine that has the time.
pub(crate) fn large() -> Vec<Scope> {
    let crash = |scope: Scope, name| {
        let left = Left { crashes_in_all: 1, ..scope.left };
        Scope { name, left, ..scope }
    };
    let any_crash = |scope: Scope, name| {
        let left = Left { crashes: vec![1; scope.left.crashes.len()], ..scope.left };
        Scope { name, left, ..scope }
    };
    let any_order = |scope: Scope, name| Scope { name, ordered: false, ..scope };
    let three = Scope {
        name: "three candidates and a crash",
        left: Left { elections: vec![1, 1, 1], ..elections().left },
        ..elections()
    };
    let again = Scope {
        name: "two elections by one, a heartbeat and a crash",
        left: Left { elections: vec![1, 2, 0], beats: vec![1; 3], ..elections().left },
        ordered: true,
        ..elections()
    };
    vec![
        promotion(),
        crash(promotion(), "a promotion, an election and a crash"),
        crash(two_proposals(), "two proposals, a leader change and a crash"),
        any_order(two_proposals(), "two proposals and a leader change, in any order"),
        crash(certificates(), "certificates, slow signing, a leader change and a crash"),
        crash(pre_votes(), "elections with pre-votes and a crash"),
        any_order(pre_votes(), "elections with pre-votes, in any order"),
        any_crash(removal(), "a removal, an election and a crash of anybody"),
        any_order(removal(), "a removal, an election and a crash of the leader, in any order"),
        again,
        three,
    ]
}
