//! No promise leaves a node before its disk holds what the promise says.

use super::{Verdict, demand};
use crate::chain::Chain;
use crate::disk::Disk;
use crate::members::id_of;
use concordat::certificate::{ElectionClaim, Head};
use concordat::core::{AppendResult, CastVote, Message};
use concordat::ids::{LogIndex, NodeId};

pub(crate) fn sends(node: usize, to: &NodeId, message: &Message, memory: &Chain, disk: &Disk) -> Verdict {
    let rule = "nothing is promised before it is durable";
    let why = || {
        format!("n{node} sends {message:?} with term {} and {} entries on its disk", disk.hard.term, disk.log.last())
    };
    match message {
        Message::AppendReply { term, result, .. } => {
            demand(disk.hard.term >= *term, rule, why)?;
            match result {
                AppendResult::Durable(upto) => {
                    demand(disk.log.at(*upto).is_some() && disk.log.at(*upto) == memory.at(*upto), rule, why)
                }
                AppendResult::Mismatch { .. } => Ok(()),
            }
        }
        Message::HeartbeatReply { term, .. } => demand(disk.hard.term >= *term, rule, why),
        Message::RequestVote { claim, .. } => demand(disk.hard.vote == Some(*claim), rule, why),
        Message::RequestVoteReply { term, granted: true, .. } => {
            demand(disk.hard.vote.is_some_and(|v| v.term == *term && v.candidate == *to), rule, why)
        }
        Message::RequestVoteReply { term, granted: false, .. } => demand(disk.hard.term >= *term, rule, why),
        Message::HeadShare { head, .. } => signs_head(node, head, memory, disk),
        _ => Ok(()),
    }
}

pub(crate) fn signs_head(node: usize, head: &Head, memory: &Chain, disk: &Disk) -> Verdict {
    let index = LogIndex(head.size);
    let fine = disk.log.at(index).is_some()
        && disk.log.at(index) == memory.at(index)
        && disk.log.term_at(index) == head.term
        && disk.hard.term == head.term;
    demand(fine, "a head is signed when durable, in its own term", || {
        format!("n{node} signs {head:?} with term {} and {} entries on its disk", disk.hard.term, disk.log.last())
    })
}

pub(crate) fn signs_claim(node: usize, claim: &ElectionClaim, disk: &Disk) -> Verdict {
    demand(
        disk.hard.vote == Some(*claim) && disk.hard.term == claim.term,
        "a vote is durable before it is signed",
        || format!("n{node} signs {claim:?} with {:?} on its disk", disk.hard),
    )
}

pub(crate) fn signs_answer(node: usize, on_disk: Option<&CastVote>, granted: bool) -> Verdict {
    demand(on_disk.is_some_and(|c| c.granted == granted), "an answer is durable before it is signed", || {
        format!("n{node} signs granted={granted} with {on_disk:?} on its disk")
    })
}

#[test]
fn promises_before_the_disk_are_caught() {
    use super::planted::{chain, noop};
    use concordat::core::HardState;
    use concordat::ids::{Digest, Term};
    let memory = chain([noop(1, 2), noop(2, 2)]);
    let claim =
        ElectionClaim { term: Term(2), candidate: id_of(1), last_term: Term(0), last_size: 0, last_root: Digest::ZERO };
    let hard = HardState { term: Term(2), vote: Some(claim) };
    let disk = Disk { hard: hard.clone(), log: chain([noop(1, 2)]), ..Disk::default() };
    let empty = Disk::default();
    let ack = |upto| Message::AppendReply { term: Term(2), session: 1, result: AppendResult::Durable(LogIndex(upto)) };
    let vote = Message::RequestVoteReply { term: Term(2), granted: true, signatures: Vec::new() };
    let head = |size, term| Head { term: Term(term), size, root: Digest::ZERO };
    assert!(sends(0, &id_of(1), &ack(1), &memory, &disk).is_ok());
    assert!(sends(0, &id_of(1), &ack(2), &memory, &disk).is_err(), "an entry that is not on the disk");
    assert!(sends(0, &id_of(1), &ack(1), &chain([noop(1, 3)]), &disk).is_err(), "another entry is on the disk");
    assert!(sends(0, &id_of(1), &vote, &memory, &disk).is_ok());
    assert!(sends(0, &id_of(2), &vote, &memory, &disk).is_err(), "a vote for somebody else");
    assert!(sends(0, &id_of(1), &vote, &memory, &empty).is_err(), "a vote not on the disk");
    assert!(
        sends(0, &id_of(2), &Message::RequestVote { claim, under: Vec::new(), transfer: false }, &memory, &empty)
            .is_err(),
        "a candidacy not on the disk"
    );
    assert!(signs_claim(0, &claim, &disk).is_ok());
    assert!(signs_claim(0, &claim, &empty).is_err());
    assert!(signs_head(0, &head(1, 2), &memory, &disk).is_ok());
    assert!(signs_head(0, &head(2, 2), &memory, &disk).is_err(), "not durable");
    assert!(signs_head(0, &head(1, 1), &memory, &disk).is_err(), "another term");
    assert!(signs_answer(0, None, true).is_err());
}
