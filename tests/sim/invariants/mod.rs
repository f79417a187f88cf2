//! What must hold after every event, one file each (section F of the list of Raft cases). Each checker is a plain struct
//! told facts; each has a test that it catches a planted violation.

pub(crate) mod certificates;
pub(crate) mod committed;
pub(crate) mod delivery;
pub(crate) mod election_safety;
pub(crate) mod exactly_once;
pub(crate) mod log_matching;
pub(crate) mod one_vote;
pub(crate) mod outcomes;
pub(crate) mod positions;
pub(crate) mod promises;
pub(crate) mod tables;

/// Which rule was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) what: String,
}

pub(crate) type Verdict = Result<(), Violation>;

pub(crate) fn demand(holds: bool, rule: &'static str, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Violation { rule, what: what() }) }
}

/// All checkers of one run.
#[derive(Default)]
pub(crate) struct Invariants {
    pub(crate) elections: election_safety::ElectionSafety,
    pub(crate) votes: one_vote::OneVote,
    pub(crate) matching: log_matching::LogMatching,
    pub(crate) committed: committed::Committed,
    pub(crate) certificates: certificates::Certificates,
    pub(crate) positions: positions::Positions,
    pub(crate) delivery: delivery::Delivery,
    pub(crate) once: exactly_once::ExactlyOnce,
    pub(crate) outcomes: outcomes::Outcomes,
}

/// Entries for planted violations.
#[cfg(test)]
pub(crate) mod planted {
    use crate::chain::Chain;
    use concordat::certificate::{Body, Entry, Header, Kind, Request, payload_hash};
    use concordat::ids::{Digest, Epoch, LogIndex, NodeId, ProposalId, Term};
    use std::sync::Arc;

    pub(crate) fn noop(index: u64, term: u64) -> Arc<Entry> {
        entry(index, term, Kind::Noop, None, &term.to_be_bytes())
    }

    pub(crate) fn proposal(index: u64, term: u64, name: &str) -> Arc<Entry> {
        let request = Request { client: "planted".into(), request_id: name.into(), deadline_ms: u64::MAX };
        entry(index, term, Kind::Proposal, Some(request), name.as_bytes())
    }

    fn entry(index: u64, term: u64, kind: Kind, request: Option<Request>, payload: &[u8]) -> Arc<Entry> {
        let header = Header {
            index: LogIndex(index),
            term: Term(term),
            epoch: Epoch::ZERO,
            kind,
            proposal_id: request.as_ref().map(|_| ProposalId { term: Term(term), seq: index, origin: NodeId([1; 32]) }),
            request_digest: request.as_ref().map_or(Digest::ZERO, Request::digest),
            proposed_at: index,
            required_quorum: u16::from(request.is_some()),
            abort_reason: None,
            tally: None,
            payload_len: u32::try_from(payload.len()).unwrap(),
            payload_hash: payload_hash(&[1; 16], payload),
        };
        Arc::new(Entry::new(header, Body { salt: [1; 16], request, payload: payload.to_vec() }).unwrap())
    }

    pub(crate) fn chain(entries: impl IntoIterator<Item = Arc<Entry>>) -> Chain {
        let mut chain = Chain::default();
        entries.into_iter().for_each(|e| chain.push(e));
        chain
    }
}
