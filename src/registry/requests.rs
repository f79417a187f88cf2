//! The table of requests already answered: what makes a retry harmless.

use super::record::Outcome;
use crate::ids::{Digest, LogIndex, ProposalId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What is remembered of a request until its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Its proposal.
    pub id: ProposalId,
    /// Its entry.
    pub index: LogIndex,
    /// SHA-256 of the payload alone; zero when the proposal was aborted, because the log does not hold what was
    /// refused. Compare with [`Answered::may_be`].
    pub content: Digest,
    /// Until when it is remembered, milliseconds since the Unix epoch, inclusive.
    pub deadline_ms: u64,
    /// What came of it.
    pub outcome: Outcome,
}

impl Answered {
    /// Whether a payload with this SHA-256 may be the one that was answered. `false` is certain: the request id was
    /// reused. After an abort the answer is always `true`: a retry learns of the abort whatever it carries.
    #[must_use]
    pub fn may_be(&self, content: &Digest) -> bool {
        self.content == Digest::ZERO || self.content == *content
    }
}

/// Requests by key, and the log's own clock that forgets them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Requests {
    /// The highest `proposed_at` seen, milliseconds since the Unix epoch. Leaders keep `proposed_at` from decreasing;
    /// taking the maximum here makes "forgotten" final even if one fails to.
    clock: u64,
    by_key: BTreeMap<Digest, Answered>,
    /// Derived from `by_key`.
    by_deadline: BTreeSet<(u64, Digest)>,
}

impl Requests {
    /// Invariant: no remembered request's deadline is past; and whatever was forgotten is past for good, so that
    /// [`Requests::is_past`] catches its repeats.
    pub(super) fn advance_clock(&mut self, proposed_at: u64) {
        self.clock = self.clock.max(proposed_at);
        while let Some((deadline, key)) = self.by_deadline.first().copied()
            && self.is_past(deadline)
        {
            self.by_deadline.pop_first();
            self.by_key.remove(&key);
        }
    }

    pub(super) fn is_past(&self, deadline_ms: u64) -> bool {
        deadline_ms < self.clock
    }

    pub(super) fn insert(&mut self, key: Digest, answered: Answered) {
        self.by_deadline.insert((answered.deadline_ms, key));
        self.by_key.insert(key, answered);
    }

    pub(super) fn get(&self, key: &Digest) -> Option<&Answered> {
        self.by_key.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&Digest, &Answered)> {
        self.by_key.iter()
    }
}
