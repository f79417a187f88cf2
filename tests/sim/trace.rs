//! What happened: a hash over all of it, and the last few hundred lines for people.

use crate::hash::Fast;
use crate::members::index_of;
use concordat::core::{AppendResult, Effect, Input, Message};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

const TAIL: usize = 250;

#[derive(Clone, Debug)]
enum What {
    Received(usize, Message),
    Input(Input),
    Effect(Effect),
    Note(String),
}

pub(crate) struct Trace {
    hasher: Fast,
    tail: VecDeque<(u64, usize, What)>,
    /// Whether the last lines are kept for people: sweeps keep none, and run a seed that fails once more.
    told: bool,
    pub(crate) events: u64,
}

impl Trace {
    pub(crate) fn new(told: bool) -> Self {
        Self { hasher: Fast::default(), tail: VecDeque::new(), told, events: 0 }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    fn add(&mut self, at_us: u64, node: usize, what: impl FnOnce() -> What) {
        (at_us, node).hash(&mut self.hasher);
        if !self.told {
            return;
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back((at_us, node, what()));
    }

    pub(crate) fn received(&mut self, at_us: u64, node: usize, from: usize, message: &Message) {
        (from, std::mem::discriminant(message)).hash(&mut self.hasher);
        self.add(at_us, node, || What::Received(from, message.clone()));
    }

    pub(crate) fn input(&mut self, at_us: u64, node: usize, input: &Input) {
        std::mem::discriminant(input).hash(&mut self.hasher);
        self.add(at_us, node, || What::Input(input.clone()));
    }

    pub(crate) fn effect(&mut self, at_us: u64, node: usize, effect: &Effect) {
        effect.hash(&mut self.hasher);
        self.add(at_us, node, || What::Effect(effect.clone()));
    }

    pub(crate) fn note(&mut self, at_us: u64, node: usize, note: impl FnOnce() -> String) {
        self.add(at_us, node, || What::Note(note()));
    }

    pub(crate) fn tail(&self) -> String {
        let line = |(at, node, what): &(u64, usize, What)| {
            let text = match what {
                What::Received(from, message) => format!("<- n{from} {}", message_text(message)),
                What::Input(input) => format!("<- {}", cut(input_name(input), &format!("{input:?}"))),
                What::Effect(Effect::Send { to, message }) => {
                    format!("-> n{} {}", index_of(to), message_text(message))
                }
                What::Effect(effect) => format!("!  {}", effect_text(effect)),
                What::Note(note) => format!("** {note}"),
            };
            format!("{:>11.3} ms  n{node}  {text}\n", *at as f64 / 1000.0)
        };
        self.tail.iter().map(line).collect()
    }
}

fn cut(name: &str, text: &str) -> String {
    let text: String = text.chars().take(160).collect();
    if text.starts_with(name) { text } else { format!("{name}: {text}") }
}

fn effect_text(effect: &Effect) -> String {
    match effect {
        Effect::Persist { seq, write } => format!(
            "Persist {seq}: hard {:?}, entries {:?}, certificate {:?}, cast {}",
            write.hard.as_ref().map(|h| (h.term.0, h.vote.as_ref().map(|v| v.candidate.0[0] - 1))),
            write.entries.iter().map(|e| (e.index().0, e.term().0)).collect::<Vec<_>>(),
            write.certificate.as_ref().map(|c| c.head.size),
            write.cast.is_some(),
        ),
        Effect::Commit { index, .. } => format!("Commit {index}"),
        Effect::Certified(c) => format!("Certified {} in term {}", c.head.size, c.head.term),
        Effect::Role { role, term, leader } => {
            format!("Role {role:?} in term {term}, leader {:?}", leader.map(|l| l.0[0] - 1))
        }
        other => cut("", &format!("{other:?}")),
    }
}

fn message_text(message: &Message) -> String {
    match message {
        Message::RequestVote { claim, .. } => {
            format!("RequestVote term {} last ({}, {})", claim.term, claim.last_size, claim.last_term)
        }
        Message::RequestVoteReply { term, granted, .. } => format!("RequestVoteReply term {term} granted {granted}"),
        Message::Append { term, session, prev_index, prev_term, entries, commit, sign_point, election, .. } => format!(
            "Append term {term} session {session} prev ({prev_index}, {prev_term}) +{:?} commit {commit} sign {sign_point} proof {}",
            entries.iter().map(|e| (e.index().0, e.term().0)).collect::<Vec<_>>(),
            election.is_some(),
        ),
        Message::AppendReply { term, session, result: AppendResult::Durable(index) } => {
            format!("AppendReply term {term} session {session} durable {index}")
        }
        Message::Heartbeat { term, session, commit, sign_point, election, .. } => format!(
            "Heartbeat term {term} session {session} commit {commit} sign {sign_point} proof {}",
            election.is_some()
        ),
        Message::HeadShare { head, .. } => format!("HeadShare {} in term {}", head.size, head.term),
        Message::Certificate(c) => format!("Certificate {} in term {}", c.head.size, c.head.term),
        other => cut(message_name(other), &format!("{other:?}")),
    }
}

pub(crate) fn message_name(message: &Message) -> &'static str {
    match message {
        Message::PreVote { .. } => "PreVote",
        Message::PreVoteReply { .. } => "PreVoteReply",
        Message::RequestVote { .. } => "RequestVote",
        Message::RequestVoteReply { .. } => "RequestVoteReply",
        Message::Append { .. } => "Append",
        Message::AppendReply { result: AppendResult::Durable(_), .. } => "AppendReply(Durable)",
        Message::AppendReply { result: AppendResult::Mismatch { .. }, .. } => "AppendReply(Mismatch)",
        Message::SnapshotOffer { .. } => "SnapshotOffer",
        Message::SnapshotWanted { .. } => "SnapshotWanted",
        Message::SnapshotChunk { .. } => "SnapshotChunk",
        Message::Heartbeat { .. } => "Heartbeat",
        Message::HeartbeatReply { .. } => "HeartbeatReply",
        Message::ProofWanted { .. } => "ProofWanted",
        Message::EpochsWanted { .. } => "EpochsWanted",
        Message::Epochs { .. } => "Epochs",
        Message::ReadIndex { .. } => "ReadIndex",
        Message::ReadIndexReply { .. } => "ReadIndexReply",
        Message::TimeoutNow { .. } => "TimeoutNow",
        Message::HeadShare { .. } => "HeadShare",
        Message::Certificate(_) => "Certificate",
        Message::Ballot { .. } => "Ballot",
        Message::Vote { .. } => "Vote",
    }
}

/// Every name that [`message_name`] gives: a sweep must have seen each.
pub(crate) const MESSAGE_NAMES: [&str; 22] = [
    "SnapshotOffer",
    "SnapshotWanted",
    "SnapshotChunk",
    "PreVote",
    "PreVoteReply",
    "RequestVote",
    "RequestVoteReply",
    "Append",
    "AppendReply(Durable)",
    "AppendReply(Mismatch)",
    "Heartbeat",
    "HeartbeatReply",
    "ProofWanted",
    "EpochsWanted",
    "Epochs",
    "ReadIndex",
    "ReadIndexReply",
    "TimeoutNow",
    "HeadShare",
    "Certificate",
    "Ballot",
    "Vote",
];

pub(crate) fn input_name(input: &Input) -> &'static str {
    match input {
        Input::Tick => "Tick",
        Input::Receive { .. } => "Receive",
        Input::Submit { .. } => "Submit",
        Input::Decide { .. } => "Decide",
        Input::Persisted { .. } => "Persisted",
        Input::Fetched { .. } => "Fetched",
        Input::Applied { .. } => "Applied",
        Input::VoteSigned { .. } => "VoteSigned",
        Input::VoteVerified { .. } => "VoteVerified",
        Input::ElectionCertified { .. } => "ElectionCertified",
        Input::LeaderProved { .. } => "LeaderProved",
        Input::HeadSigned { .. } => "HeadSigned",
        Input::ShareVerified { .. } => "ShareVerified",
        Input::HeadCertified { .. } => "HeadCertified",
        Input::CertificateVerified { .. } => "CertificateVerified",
        Input::BallotSigned { .. } => "BallotSigned",
        Input::BallotVerified { .. } => "BallotVerified",
        Input::Tallied { .. } => "Tallied",
        Input::Mark { .. } => "Mark",
        Input::SnapshotTaken(_) => "SnapshotTaken",
        Input::SnapshotOffered(_) => "SnapshotOffered",
        Input::Compacted { .. } => "Compacted",
        Input::ChunkFetched { .. } => "ChunkFetched",
        Input::SnapshotVerified { .. } => "SnapshotVerified",
        Input::SnapshotStaged { .. } => "SnapshotStaged",
        Input::ChunkStored { .. } => "ChunkStored",
        Input::SnapshotReady { .. } => "SnapshotReady",
        Input::Read { .. } => "Read",
        Input::Transfer { .. } => "Transfer",
        Input::Change { .. } => "Change",
        Input::Keys(_) => "Keys",
        Input::EpochsFetched { .. } => "EpochsFetched",
        Input::EpochsVerified { .. } => "EpochsVerified",
    }
}
