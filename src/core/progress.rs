//! What a leader knows of one peer.

use crate::certificate::PublicKey;
use crate::ids::LogIndex;
use crate::limits::{MAX_INFLIGHT_APPENDS, MAX_INFLIGHT_BYTES};
use std::collections::VecDeque;

/// How appends are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Flow {
    /// One message at a time, until the match is known.
    Probe {
        /// One is outstanding.
        waiting: bool,
    },
    /// Pipelined.
    Replicate,
    /// It lacks entries that are gone here, and was offered a snapshot: no appends until it has that.
    Snapshot {
        /// When it was offered, or asked for a chunk last, on the monotonic clock.
        heard: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Progress {
    /// Known durable at the peer and equal to the leader's log, up to here.
    pub(super) matched: LogIndex,
    /// Next index to send.
    pub(super) next: LogIndex,
    pub(super) flow: Flow,
    /// Answers bear it; those of an earlier session never count.
    pub(super) session: u64,
    /// Appends under way: last index and bytes of each.
    inflight: VecDeque<(LogIndex, usize)>,
    inflight_bytes: usize,
    /// Entries are being read back from the store for it.
    pub(super) fetching: bool,
    /// Chunks of a snapshot that are being read back for it.
    pub(super) chunks_fetching: usize,
    /// Answered since the last quorum check.
    pub(super) active: bool,
    /// Has answered in this term, so it holds the election certificate.
    pub(super) proved: bool,
    /// Answered an append since the last heartbeat answer: nothing is stuck.
    pub(super) moving: bool,
    /// Size of the newest certificate sent to it.
    pub(super) certificate_sent: u64,
    /// Highest commit index told.
    pub(super) commit_told: LogIndex,
    /// Newest sign point told.
    pub(super) sign_point_told: LogIndex,
    /// The keys of its rows in the tables in force: only there does it count.
    pub(super) keys: Vec<PublicKey>,
    /// When it last answered in this term, on the monotonic clock.
    pub(super) heard: Option<u64>,
    /// The newest round of reads that it has answered.
    pub(super) round: u64,
    /// The `EpochFinal` entry that leaves it out: it is served until it knows that this is committed.
    pub(super) leaves_at: Option<LogIndex>,
}

impl Progress {
    pub(super) fn new(next: LogIndex, session: u64, keys: Vec<PublicKey>) -> Self {
        Self {
            matched: LogIndex::ZERO,
            next,
            flow: Flow::Probe { waiting: false },
            session,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            fetching: false,
            chunks_fetching: 0,
            active: true,
            proved: false,
            moving: false,
            certificate_sent: 0,
            commit_told: LogIndex::ZERO,
            sign_point_told: LogIndex::ZERO,
            keys,
            heard: None,
            round: 0,
            leaves_at: None,
        }
    }

    /// Whether it has answered since `at`.
    pub(super) fn heard_since(&self, at: u64) -> bool {
        self.heard.is_some_and(|heard| heard >= at)
    }

    /// Whether one more append may be sent now.
    pub(super) fn may_send(&self) -> bool {
        match self.flow {
            Flow::Probe { waiting } => !waiting && !self.fetching,
            Flow::Snapshot { .. } => false,
            Flow::Replicate => {
                !self.fetching && self.inflight.len() < MAX_INFLIGHT_APPENDS && self.inflight_bytes < MAX_INFLIGHT_BYTES
            }
        }
    }

    /// An append up to `last` was sent.
    pub(super) fn sent(&mut self, last: LogIndex, bytes: usize) {
        match &mut self.flow {
            Flow::Probe { waiting } => *waiting = true,
            Flow::Replicate if last >= self.next => {
                self.inflight.push_back((last, bytes));
                self.inflight_bytes += bytes;
                self.next = last.next();
            }
            Flow::Replicate | Flow::Snapshot { .. } => {}
        }
    }

    /// The peer holds everything up to `index`.
    pub(super) fn acknowledged(&mut self, index: LogIndex) {
        self.moving = true;
        while let Some(&(last, bytes)) = self.inflight.front().filter(|f| f.0 <= index) {
            debug_assert!(last <= index);
            self.inflight_bytes -= bytes;
            self.inflight.pop_front();
        }
        self.matched = self.matched.max(index);
        if let Flow::Probe { .. } | Flow::Snapshot { .. } = self.flow {
            self.flow = Flow::Replicate;
            self.next = self.matched.next();
        }
        self.next = self.next.max(self.matched.next());
    }

    /// A snapshot was offered to it at `now`.
    pub(super) fn pause(&mut self, now: u64) {
        self.flow = Flow::Snapshot { heard: now };
        self.inflight.clear();
        self.inflight_bytes = 0;
        self.fetching = false;
    }

    /// Starts over from `next`, one message at a time.
    pub(super) fn probe(&mut self, next: LogIndex) {
        self.flow = Flow::Probe { waiting: false };
        self.next = next.max(self.matched.next());
        self.inflight.clear();
        self.inflight_bytes = 0;
        self.fetching = false;
    }
}
