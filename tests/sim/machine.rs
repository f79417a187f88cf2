//! The replicated state machine of the simulator: what was applied, and the table of requests.

use crate::hash::FastMap;
use concordat::certificate::{Entry, Kind};
use concordat::ids::{Digest, LogIndex, ProposalId};
use std::sync::Arc;

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    pub(crate) index: LogIndex,
    pub(crate) id: ProposalId,
    pub(crate) kind: Kind,
    /// The payload's length and hash stand for the payload.
    pub(crate) content: Digest,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) applied: LogIndex,
    /// By [`concordat::certificate::Request::key`]: the first entry under a key is applied, later ones change nothing.
    pub(crate) requests: FastMap<Digest, Outcome>,
    /// Entries under a key that was applied before.
    pub(crate) repeats: u64,
}

impl Machine {
    pub(crate) fn apply(&mut self, entry: &Arc<Entry>) {
        assert_eq!(entry.index(), self.applied.next(), "entries are applied in order");
        self.applied = entry.index();
        let (Some(request), Some(id)) = (&entry.body.request, entry.header.proposal_id) else { return };
        let outcome = Outcome { index: entry.index(), id, kind: entry.header.kind, content: entry.header.payload_hash };
        if *self.requests.entry(request.key()).or_insert(outcome) != outcome {
            self.repeats += 1;
        }
    }
}
