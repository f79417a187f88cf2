//! Linearizable reads by ReadIndex (Raft dissertation, section 6.4): the leader notes its commit index, hears from a
//! quorum that it still leads, and only then says up to which index a reader must have applied the log. No lease, so no
//! clock is trusted.

use super::progress::Progress;
use super::{Core, Effect, Message, State};
use crate::ids::{LogIndex, NodeId, Term};
use crate::limits::MAX_READS;
use std::collections::VecDeque;

/// Who wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reader {
    Own { handle: u64 },
    Peer { from: NodeId, context: u64 },
}

/// Reads that wait for a leader's word from a quorum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Rounds {
    /// The newest round. Every heartbeat bears it, every answer echoes it, and a number is never used twice in a term.
    pub(super) newest: u64,
    /// Reads of that round, and the commit index when it began.
    asked: Vec<Reader>,
    index: LogIndex,
    /// Reads that came in since: they must not be confirmed by an answer to a question asked before.
    waiting: VecDeque<Reader>,
}

/// A read that this follower has passed on to its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Passed {
    handle: u64,
    due: u64,
}

impl Core {
    pub(super) fn read(&mut self, handle: u64) {
        let reads = self.reading.len();
        match (&mut self.state, self.leader) {
            (State::Leader(lead), _) if lead.reads.waiting.len() < MAX_READS => {
                lead.reads.waiting.push_back(Reader::Own { handle });
            }
            (State::Follower, Some(leader)) if leader != self.id && reads < MAX_READS => {
                self.next_context += 1;
                let (context, term) = (self.next_context, self.hard.term);
                let due = self.now.mono + self.options.election_timeout_ms.1;
                self.reading.insert(context, Passed { handle, due });
                self.send(leader, Message::ReadIndex { term, context });
            }
            _ => self.effects.push(Effect::ReadRefused { handle }),
        }
    }

    pub(super) fn on_read_index(&mut self, from: NodeId, term: Term, context: u64) {
        let ours = self.hard.term;
        match &mut self.state {
            State::Leader(lead) if term == ours && lead.reads.waiting.len() < MAX_READS => {
                lead.reads.waiting.push_back(Reader::Peer { from, context });
            }
            _ => self.send(from, Message::ReadIndexReply { term: ours, context, index: None }),
        }
    }

    pub(super) fn on_read_index_reply(&mut self, from: NodeId, context: u64, index: Option<LogIndex>) {
        if self.leader != Some(from) {
            return;
        }
        let Some(Passed { handle, .. }) = self.reading.remove(&context) else { return };
        self.effects.push(match index {
            Some(index) => Effect::ReadReady { handle, index },
            None => Effect::ReadRefused { handle },
        });
    }

    /// Answers a round that a quorum has confirmed, and begins the next one.
    pub(super) fn confirm_reads(&mut self) {
        // Until it has committed in its own term a leader does not know how far the log is committed (Raft, section 8):
        // reads wait.
        let settled = self.log.term_at(self.committed) == Some(self.hard.term);
        loop {
            let State::Leader(lead) = &mut self.state else { return };
            if lead.reads.asked.is_empty() {
                if lead.reads.waiting.is_empty() || !settled {
                    return;
                }
                lead.reads.newest += 1;
                lead.reads.asked = lead.reads.waiting.drain(..).collect();
                lead.reads.index = self.committed;
                self.heartbeat_all();
            }
            let State::Leader(lead) = &mut self.state else { return };
            let (id, keys, round) = (self.id, &self.keys, lead.reads.newest);
            let confirmed = self.tables.reached(|m| {
                let peer = |p: &Progress| p.keys.contains(&m.bls_key) && p.round >= round;
                if m.did == id { keys.contains(&m.bls_key) } else { lead.peers.get(&m.did).is_some_and(peer) }
            });
            if !confirmed {
                return;
            }
            let (index, term) = (lead.reads.index, self.hard.term);
            for reader in std::mem::take(&mut lead.reads.asked) {
                match reader {
                    Reader::Own { handle } => self.effects.push(Effect::ReadReady { handle, index }),
                    Reader::Peer { from, context } => {
                        self.send(from, Message::ReadIndexReply { term, context, index: Some(index) });
                    }
                }
            }
        }
    }

    /// Whoever was asked leads no more, or is not heard of.
    pub(super) fn refuse_reads(&mut self) {
        for (_, Passed { handle, .. }) in std::mem::take(&mut self.reading) {
            self.effects.push(Effect::ReadRefused { handle });
        }
        let term = self.hard.term;
        let State::Leader(lead) = &mut self.state else { return };
        let Rounds { asked, waiting, .. } = std::mem::take(&mut lead.reads);
        for reader in asked.into_iter().chain(waiting) {
            match reader {
                Reader::Own { handle } => self.effects.push(Effect::ReadRefused { handle }),
                Reader::Peer { from, context } => {
                    self.send(from, Message::ReadIndexReply { term, context, index: None });
                }
            }
        }
    }

    pub(super) fn reads_on_time(&mut self) {
        let now = self.now.mono;
        let over: Vec<u64> = self.reading.iter().filter(|r| r.1.due <= now).map(|r| *r.0).collect();
        for context in over {
            if let Some(Passed { handle, .. }) = self.reading.remove(&context) {
                self.effects.push(Effect::ReadRefused { handle });
            }
        }
    }

    /// When the oldest read that was passed on is given up.
    pub(super) fn reads_due(&self) -> u64 {
        // Contexts ascend, and so do the times at which they are given up.
        self.reading.first_key_value().map_or(u64::MAX, |r| r.1.due)
    }
}
