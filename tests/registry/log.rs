//! Builds committed entries one after the other, as a leader would have.

use concordat::certificate::{AbortReason, Body, Entry, Header, Kind, Request, payload_hash};
use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
use concordat::registry::{Outcome, State};
use serde_json::Value;

/// Milliseconds since the Unix epoch at which every test log begins.
pub(crate) const START: u64 = 1_790_000_000_000;
/// A deadline that no test reaches.
pub(crate) const FAR: u64 = START + 1_000_000_000;

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) state: State,
    pub(crate) entries: Vec<Entry>,
    /// Milliseconds since [`START`].
    pub(crate) now: u64,
}

pub(crate) fn request(name: &str, deadline_ms: u64) -> Request {
    Request { client: "tests".into(), request_id: name.into(), deadline_ms }
}

impl Log {
    fn next(&self) -> LogIndex {
        self.state.applied().next()
    }

    fn push(&mut self, kind: Kind, request: Option<Request>, payload: Vec<u8>) -> Outcome {
        let index = self.next();
        // The salt of a payload that is not stored is not stored either.
        let salt = if kind == Kind::Aborted { [0; 16] } else { [7; 16] };
        let proposal_id =
            request.is_some().then_some(ProposalId { term: Term(1), seq: index.0, origin: NodeId([1; 32]) });
        let header = Header {
            index,
            term: Term(1),
            epoch: Epoch(0),
            kind,
            proposal_id,
            request_digest: request.as_ref().map_or(Digest::ZERO, Request::digest),
            proposed_at: START + self.now,
            required_quorum: if request.is_some() { 2 } else { 0 },
            abort_reason: (kind == Kind::Aborted).then_some(AbortReason::Expired),
            tally: None,
            payload_len: payload.len().try_into().unwrap(),
            payload_hash: payload_hash(&salt, &payload),
        };
        let entry = Entry::new(header, Body { salt, request, payload }).unwrap();
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry, "the tests build entries that exist on the wire");
        self.entries.push(entry);
        self.state.apply(self.entries.last().unwrap())
    }

    pub(crate) fn noop(&mut self) -> Outcome {
        self.push(Kind::Noop, None, Vec::new())
    }

    pub(crate) fn propose_bytes(&mut self, request: Request, payload: &[u8]) -> Outcome {
        self.push(Kind::Proposal, Some(request), payload.to_vec())
    }

    pub(crate) fn propose_as(&mut self, request: Request, payload: &Value) -> Outcome {
        self.propose_bytes(request, &serde_json::to_vec(payload).unwrap())
    }

    /// Under a request id of its own.
    pub(crate) fn propose(&mut self, payload: &Value) -> Outcome {
        let name = self.next().to_string();
        self.propose_as(request(&name, FAR), payload)
    }

    pub(crate) fn abort(&mut self, request: Request) -> Outcome {
        self.push(Kind::Aborted, Some(request), Vec::new())
    }
}
