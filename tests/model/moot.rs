//! Messages that can never do anything again, whatever happens. That each of them does nothing *now* is asserted
//! whenever one is dropped; that it stays so follows from what is on the receiver's disk, which no crash takes back.

use crate::node::Node;
use concordat::core::{Message, Role};

pub(crate) fn is_moot(message: &Message, receiver: &Node) -> bool {
    let core = &receiver.core;
    // Neither the core's term nor that of its next life will ever be less.
    let term = receiver.disk.hard.term.min(core.term());
    match message {
        // An older term's vote is neither given nor counted. Only a candidate of that very term counts it, and nobody
        // stands twice in one term.
        Message::RequestVote { claim, .. } => claim.term < term,
        Message::RequestVoteReply { term: t, .. } => *t < term || (*t == term && core.role() != Role::Candidate),
        // A pre-vote is counted for the next term only. (It also tells a clock; all clocks agree here.)
        Message::PreVoteReply { term: t, .. } => *t <= term,
        // Whoever leads a term no more never leads it again.
        Message::AppendReply { term: t, .. } | Message::HeartbeatReply { term: t, .. } => {
            *t < term || (*t == term && core.role() != Role::Leader && core.role() != Role::Candidate)
        }
        Message::ProofWanted { term: t } | Message::TimeoutNow { term: t } | Message::Vote { term: t, .. } => *t < term,
        Message::Ballot { term: t, .. } => *t < term,
        Message::HeadShare { head, .. } => {
            head.term < term || (head.term == term && core.role() != Role::Leader && core.role() != Role::Candidate)
        }
        // A newer one is on the disk.
        Message::Certificate(c) => receiver.disk.certificate.as_ref().is_some_and(|d| d.head.size >= c.head.size),
        _ => false,
    }
}

/// Answers: one that says nothing new to whoever asked is lost for good, as any message may be. (Questions that do
/// nothing now stay, for the receiver may come up again and have forgotten.)
pub(crate) fn is_answer(message: &Message) -> bool {
    matches!(
        message,
        Message::AppendReply { .. }
            | Message::HeartbeatReply { .. }
            | Message::RequestVoteReply { .. }
            | Message::HeadShare { .. }
    )
}

/// All that is left of it is a note that two clocks agree, which they always do here.
pub(crate) fn only_tells_clocks(message: &Message) -> bool {
    matches!(message, Message::PreVoteReply { .. })
}
