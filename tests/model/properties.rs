//! What must hold in every state, and what must be reachable lest the exploration prove nothing.

use crate::cluster::{Cluster, Known, State};
use crate::history::Rule;
use crate::log::Log;
use crate::node::Node;
use crate::scopes::Scope;
use concordat::certificate::{HeadCertificate, Kind, TableInForce};
use concordat::ids::LogIndex;
use stateright::Property;

pub(crate) fn all(scope: &Scope) -> Vec<Property<Cluster>> {
    let mut all = vec![
        Property::always("election safety: one leader per term", election_safety),
        Property::always("one vote per term and member", one_vote),
        Property::always("log matching", log_matching),
        Property::always("leader completeness", leader_completeness),
        Property::always("state-machine safety", state_machine_safety),
        Property::always("commit is durable on a quorum of every table in force", |_, s: &State| {
            kept(s, Rule::QuorumDurable)
        }),
        Property::always("a leader commits by entries of its own term", |_, s: &State| kept(s, Rule::OwnTerm)),
        Property::always("certificates cover committed entries only", certificates),
        Property::always("the tables in force are those of the log", tables),
        Property::always("applied ≤ committed and durable; durable is on the disk", positions),
        Property::always("nothing is promised before it is durable", |_, s: &State| kept(s, Rule::Promise)),
        Property::always("terms and positions never regress", |_, s: &State| kept(s, Rule::Regress)),
        Property::always("no assertion, halt or alarm", |_, s: &State| kept(s, Rule::Assertion)),
    ];
    all.extend(reachable().into_iter().filter(|p| scope.reaches.contains(&p.name)));
    all
}

fn reachable() -> Vec<Property<Cluster>> {
    vec![
        Property::sometimes("a leader is elected", |_, s: &State| !s.history.leaders.is_empty()),
        Property::sometimes("leaders of two terms", |_, s: &State| s.history.leaders.len() > 1),
        Property::sometimes("two leaders at a time", |_, s: &State| nodes(s).filter(|n| n.leads()).count() > 1),
        Property::sometimes("an entry is committed", |c: &Cluster, s: &State| {
            s.history.known() > c.start().history.known()
        }),
        Property::sometimes("both proposals are committed", |_, s: &State| nodes(s).any(|n| proposals_applied(n) == 2)),
        Property::sometimes("a leader was overtaken", overtaken),
        Property::sometimes("a head is certified", |c: &Cluster, s: &State| {
            nodes(s).any(|n| certified(n) > certified_at_start(c))
        }),
        Property::sometimes("a change is in force", |_, s: &State| nodes(s).any(|n| n.core.in_force().epoch.0 == 1)),
        Property::sometimes("a change is overwritten", change_overwritten),
        Property::sometimes("a leader was elected in the joint phase", |_, s: &State| {
            nodes(s).any(|n| n.leads() && n.core.term().0 > 1 && n.core.tables().is_joint())
        }),
        Property::sometimes("a node came back from a crash", |_, s: &State| s.lives.iter().any(|l| *l > 0)),
        Property::sometimes("a node came back from a crash in the joint phase", |_, s: &State| {
            nodes(s).any(|n| s.lives[n.index] > 0 && n.core.tables().is_joint())
        }),
    ]
}

fn nodes(state: &State) -> impl Iterator<Item = &Node> {
    state.nodes.iter().map(|Known { node, .. }| &**node)
}

fn kept(state: &State, rule: Rule) -> bool {
    !state.history.broken.contains(&rule)
}

fn certified(node: &Node) -> u64 {
    node.core.certificate().map_or(0, |c| c.head.size)
}

fn certified_at_start(cluster: &Cluster) -> u64 {
    nodes(cluster.start()).map(certified).max().unwrap_or_default()
}

fn proposals_applied(node: &Node) -> usize {
    let applied = node.memory.entries().take_while(|e| e.index() <= node.applied.0);
    applied.filter(|e| e.header.kind == Kind::Proposal).count()
}

/// Somebody leads whose uncommitted entries a newer leader does not have.
fn overtaken(_: &Cluster, state: &State) -> bool {
    let newest = nodes(state).filter(|n| n.leads()).max_by_key(|n| n.core.term());
    newest.is_some_and(|new| {
        let lacks = |old: &Node| old.memory.root_at(old.memory.last()) != new.memory.root_at(old.memory.last());
        nodes(state).any(|old| old.leads() && old.core.term() < new.core.term() && lacks(old))
    })
}

/// The node that appended the change first has another entry there now.
fn change_overwritten(cluster: &Cluster, state: &State) -> bool {
    let was = cluster.start().nodes[0].node.memory.last();
    let now = &state.nodes[0].node.memory;
    now.entries().find(|e| e.index() == was).is_some_and(|e| e.header.kind != Kind::Epoch)
}

/// Raft, figure 3: at most one leader can be elected in a given term.
fn election_safety(_: &Cluster, state: &State) -> bool {
    state.history.leaders.values().all(|who| who.len() <= 1)
}

/// A member signs one claim in a term, however often it restarts; and the vote on its disk is that claim.
fn one_vote(_: &Cluster, state: &State) -> bool {
    let claims = &state.history.claims;
    let on_disk = |n: &Node| {
        let vote = n.disk.hard.vote;
        vote.is_none_or(|v| claims.get(&(n.index, v.term)).is_none_or(|signed| signed.contains(&v)))
    };
    claims.values().all(|signed| signed.len() <= 1) && nodes(state).all(on_disk)
}

/// Raft, figure 3: if two logs hold an entry of the same index and term, they are identical up to it.
fn log_matching(_: &Cluster, state: &State) -> bool {
    let logs: Vec<&Log> = nodes(state).flat_map(|n| [&n.memory, &n.disk.log]).collect();
    let matches = |a: &Log, b: &Log| {
        let common = (1..=a.last().min(b.last()).0).map(LogIndex);
        common.into_iter().all(|i| a.term_at(i) != b.term_at(i) || a.root_at(i) == b.root_at(i))
    };
    logs.iter().enumerate().all(|(i, a)| logs.iter().skip(i + 1).all(|b| matches(a, b)))
}

/// Raft, figure 3: what was committed in a term is in the logs of the leaders of all later terms.
fn leader_completeness(_: &Cluster, state: &State) -> bool {
    nodes(state).filter(|n| n.leads()).all(|leader| {
        let entries = (1..).map(LogIndex).zip(&state.history.ledger);
        let mut owed = entries.filter(|(_, c)| c.in_term < leader.core.term());
        owed.all(|(index, c)| leader.memory.root_at(index) == Some(c.root))
    })
}

/// What a node calls committed, and what it has applied, is what everybody calls committed.
fn state_machine_safety(_: &Cluster, state: &State) -> bool {
    nodes(state).all(|n| {
        let committed = n.core.committed();
        let (applied, root) = n.applied;
        n.memory.root_at(committed).is_some_and(|r| state.history.root_at(committed) == Some(r))
            && state.history.root_at(applied) == Some(root)
    })
}

/// A head certificate, wherever it is kept, names the root of what is committed.
fn certificates(_: &Cluster, state: &State) -> bool {
    let covers = |c: &HeadCertificate| state.history.root_at(LogIndex(c.head.size)) == Some(c.head.root);
    let kept_ones =
        |n: &Node| [n.core.certificate(), n.disk.certificate.as_ref()].into_iter().flatten().all(|c| covers(c));
    kept(state, Rule::Certificate) && nodes(state).all(kept_ones)
}

/// Elections, commits and certificates go by what the log says, to its very end: also after a change was overwritten.
fn tables(cluster: &Cluster, state: &State) -> bool {
    let genesis = &cluster.world.genesis.table;
    nodes(state).all(|n| {
        let voters = |t: &TableInForce| t.table.voters().map(|m| m.did).collect::<Vec<_>>();
        n.core.tables().all().map(voters).eq(n.memory.voters_at(genesis, n.memory.last()))
    })
}

/// The positions of one node, in their order.
fn positions(_: &Cluster, state: &State) -> bool {
    nodes(state).all(|n| {
        let durable = n.core.durable();
        n.applied.0 <= n.core.committed().min(durable)
            && n.core.committed() <= n.core.last_index()
            && n.core.last_index() == n.memory.last()
            && n.disk.log.root_at(durable).is_some_and(|r| n.memory.root_at(durable) == Some(r))
            && n.core.root_at(durable) == n.memory.root_at(durable)
    })
}

/// What stands against each property, so that none of them holds because it looks at nothing.
#[cfg(test)]
mod planted {
    use super::*;
    use crate::history::{Committed, Fact, History, Witness};
    use crate::node::{Event, keeps_promises};
    use crate::scopes;
    use concordat::certificate::{Body, ElectionClaim, Entry, Head, Header, Kind, payload_hash};
    use concordat::core::{AppendResult, Message};
    use concordat::ids::{Digest, Epoch, Term};
    use std::sync::Arc;

    fn entry(index: u64, term: u64, payload: &[u8]) -> Arc<Entry> {
        let header = Header {
            index: LogIndex(index),
            term: Term(term),
            epoch: Epoch::ZERO,
            kind: Kind::Noop,
            proposal_id: None,
            request_digest: Digest::ZERO,
            proposed_at: index,
            required_quorum: 0,
            abort_reason: None,
            tally: None,
            payload_len: u32::try_from(payload.len()).unwrap(),
            payload_hash: payload_hash(&[1; 16], payload),
        };
        Arc::new(Entry::new(header, Body { salt: [1; 16], request: None, payload: payload.to_vec() }).unwrap())
    }

    fn log(entries: &[(u64, &[u8])]) -> Log {
        let mut log = Log::default();
        (1..).zip(entries).for_each(|(i, (term, payload))| log.write(&[entry(i, *term, payload)]));
        log
    }

    /// n0 leads term 1 with one entry, committed and certified everywhere.
    fn led() -> (Cluster, State) {
        let cluster = Cluster::new(scopes::gate().swap_remove(0));
        let state = cluster.force(cluster.start(), 0, Event::Timeout);
        let mut state = cluster.settle(state, |_| false);
        // The scope mutes certificates, so that they are planted where they are wanted.
        state.mail.clear();
        assert!(state.nodes[0].node.leads() && state.history.known() == LogIndex(1));
        (cluster, state)
    }

    fn alter(state: &mut State, node: usize, change: impl FnOnce(&mut Node)) {
        change(Arc::make_mut(&mut state.nodes[node].node));
    }

    fn rewrite(state: &mut State, change: impl FnOnce(&mut History)) {
        change(Arc::make_mut(&mut state.history));
    }

    /// The properties that a state breaks.
    fn broken(cluster: &Cluster, state: &State) -> Vec<&'static str> {
        let all = all(&cluster.scope).into_iter();
        let always = all.filter(|p| p.expectation == stateright::Expectation::Always);
        always.filter(|p| !(p.condition)(cluster, state)).map(|p| p.name).collect()
    }

    #[test]
    fn an_honest_state_breaks_nothing() {
        let (cluster, state) = led();
        assert!(broken(&cluster, &state).is_empty());
    }

    #[test]
    fn a_second_leader_of_a_term_is_caught() {
        let (cluster, mut state) = led();
        rewrite(&mut state, |h| h.leaders.entry(Term(1)).or_default().extend([1]));
        assert_eq!(broken(&cluster, &state), ["election safety: one leader per term"]);
    }

    #[test]
    fn a_second_vote_in_a_term_is_caught() {
        let (cluster, state) = led();
        let claim = *state.history.claims[&(2, Term(1))].first().unwrap();
        let other = ElectionClaim { last_size: 7, ..claim };
        let mut signed = state.clone();
        rewrite(&mut signed, |h| h.claims.entry((2, Term(1))).or_default().extend([other]));
        assert_eq!(broken(&cluster, &signed), ["one vote per term and member"]);
        let mut stored = state.clone();
        alter(&mut stored, 2, |n| n.disk.hard.vote = Some(other));
        assert_eq!(broken(&cluster, &stored), ["one vote per term and member"]);
    }

    #[test]
    fn logs_that_do_not_match_are_caught() {
        let (cluster, mut state) = led();
        alter(&mut state, 2, |n| n.disk.log.write(&[entry(2, 1, b"a")]));
        alter(&mut state, 1, |n| n.disk.log.write(&[entry(2, 1, b"b")]));
        assert_eq!(broken(&cluster, &state), ["log matching"]);
    }

    #[test]
    fn a_leader_that_lacks_what_an_earlier_one_committed_is_caught() {
        let (cluster, mut state) = led();
        let ghost = Committed { root: Digest([7; 32]), in_term: Term(0) };
        rewrite(&mut state, |h| h.ledger.push(ghost));
        assert_eq!(broken(&cluster, &state), ["leader completeness"]);
        rewrite(&mut state, |h| h.ledger[1].in_term = Term(1));
        assert!(broken(&cluster, &state).is_empty(), "its own term's entries are its own affair");
    }

    #[test]
    fn nodes_that_differ_in_what_is_committed_or_applied_are_caught() {
        let (cluster, state) = led();
        let mut other = state.clone();
        rewrite(&mut other, |h| h.ledger[0] = Committed { root: Digest([7; 32]), in_term: Term(1) });
        assert!(broken(&cluster, &other).contains(&"state-machine safety"));
        let mut applied = state.clone();
        alter(&mut applied, 1, |n| n.applied.1 = Digest([7; 32]));
        assert_eq!(broken(&cluster, &applied), ["state-machine safety"]);
    }

    #[test]
    fn a_certificate_of_something_else_is_caught() {
        let (cluster, mut state) = led();
        let head = Head { term: Term(1), size: 1, root: Digest([7; 32]) };
        alter(&mut state, 1, |n| n.disk.certificate = Some(Arc::new(HeadCertificate { head, halves: Vec::new() })));
        assert_eq!(broken(&cluster, &state), ["certificates cover committed entries only"]);
    }

    #[test]
    fn tables_of_another_log_are_caught() {
        let (mut cluster, state) = led();
        cluster.world.genesis.table = crate::members::table(&[0, 1], &[2]);
        assert_eq!(broken(&cluster, &state), ["the tables in force are those of the log"]);
    }

    #[test]
    fn positions_out_of_order_are_caught() {
        let name = "applied ≤ committed and durable; durable is on the disk";
        let (cluster, state) = led();
        let mut empty = state.clone();
        alter(&mut empty, 1, |n| n.disk.log = Log::default());
        assert_eq!(broken(&cluster, &empty), [name]);
        let mut ahead = state.clone();
        alter(&mut ahead, 1, |n| n.applied.0 = LogIndex(2));
        assert!(broken(&cluster, &ahead).contains(&name));
    }

    #[test]
    fn commits_are_held_to_the_quorum_and_to_the_term() {
        let genesis = crate::members::table(&[0, 1, 2], &[]);
        let (one, two) = (log(&[(1, b"")]), log(&[(1, b""), (2, b"")]));
        let (empty, other) = (Log::default(), log(&[(1, b""), (3, b"x")]));
        let verdict = |index, term, disks: [&Log; 3]| {
            let mut history = History::default();
            let witness = Witness { memory: &two, committed: LogIndex(index), term: Term(term) };
            history.commits(&witness, &disks, &genesis);
            history.broken.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(verdict(2, 2, [&two, &two, &empty]), []);
        assert_eq!(verdict(2, 2, [&two, &one, &other]), [Rule::QuorumDurable]);
        assert_eq!(verdict(1, 2, [&two, &one, &empty]), [Rule::OwnTerm]);
    }

    #[test]
    fn a_quorum_of_one_table_is_none_of_the_other() {
        let genesis = crate::members::table(&[0, 1, 2], &[]);
        let payload = crate::members::table(&[0, 1], &[]).encode();
        let header = Header {
            kind: Kind::Epoch,
            payload_len: u32::try_from(payload.len()).unwrap(),
            payload_hash: payload_hash(&[1; 16], &payload),
            ..entry(1, 1, b"").header.clone()
        };
        let change = Entry::new(header, Body { salt: [1; 16], request: None, payload });
        let mut joint = Log::default();
        joint.write(&[Arc::new(change.unwrap())]);
        let empty = Log::default();
        let verdict = |disks: [&Log; 3]| {
            let mut history = History::default();
            let witness = Witness { memory: &joint, committed: LogIndex(1), term: Term(1) };
            history.commits(&witness, &disks, &genesis);
            history.broken.is_empty()
        };
        assert!(verdict([&joint, &joint, &empty]));
        assert!(!verdict([&joint, &empty, &joint]), "a quorum of the old table, and one of the union");
    }

    #[test]
    fn heads_are_held_to_the_disks() {
        let genesis = crate::members::table(&[0, 1, 2], &[]);
        let (one, two) = (log(&[(1, b"")]), log(&[(1, b""), (2, b"")]));
        let fine = Head { term: Term(2), size: 2, root: two.root_at(LogIndex(2)).unwrap() };
        let verdict = |head: Head, disks: [&Log; 3]| {
            let mut history = History::default();
            let witness = Witness { memory: &two, committed: LogIndex(0), term: Term(2) };
            history.note(0, &Fact::Certifies(head), &witness, &disks, &genesis);
            history.broken.is_empty()
        };
        assert!(verdict(fine, [&two, &two, &one]));
        assert!(!verdict(fine, [&two, &one, &one]), "on no quorum");
        assert!(!verdict(Head { term: Term(3), ..fine }, [&two, &two, &one]), "of another term");
        assert!(!verdict(Head { root: Digest::ZERO, ..fine }, [&two, &two, &one]), "of another log");
    }

    #[test]
    fn promises_before_the_disk_are_caught() {
        let (_, state) = led();
        let node = &state.nodes[1].node;
        let ack =
            |upto| Message::AppendReply { term: Term(1), session: 1, result: AppendResult::Durable(LogIndex(upto)) };
        let vote = |term| Message::RequestVoteReply { term: Term(term), granted: true, signatures: Vec::new() };
        assert!(keeps_promises(node, 0, &ack(1)) && !keeps_promises(node, 0, &ack(2)));
        assert!(keeps_promises(node, 0, &vote(1)) && !keeps_promises(node, 0, &vote(2)));
        assert!(!keeps_promises(node, 2, &vote(1)), "a vote for somebody else");
    }

    #[test]
    fn rules_broken_in_passing_stay_broken() {
        let (cluster, state) = led();
        let rules = [
            (Rule::QuorumDurable, "commit is durable on a quorum of every table in force"),
            (Rule::OwnTerm, "a leader commits by entries of its own term"),
            (Rule::Certificate, "certificates cover committed entries only"),
            (Rule::Promise, "nothing is promised before it is durable"),
            (Rule::Regress, "terms and positions never regress"),
            (Rule::Assertion, "no assertion, halt or alarm"),
        ];
        for (rule, name) in rules {
            let mut state = state.clone();
            rewrite(&mut state, |h| h.broken.extend([rule]));
            assert_eq!(broken(&cluster, &state), [name]);
        }
    }
}
