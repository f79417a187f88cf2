//! Clients: each call is one request, sent through some node, and sent again under the same request id through another
//! until its outcome is known.

use crate::machine::Outcome;
use crate::members::{id_of, index_of};
use crate::world::{Event, World};
use concordat::certificate::Request;
use concordat::core::{Admission, Input, Submission};
use concordat::ids::{Digest, LogIndex};

/// How long a client waits for an outcome before it asks through another node, microseconds.
const PATIENCE_US: u64 = 1_200_000;
const LOOK_AGAIN_US: u64 = 150_000;

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) submission: Submission,
    via: usize,
    /// Whether it tries again by itself.
    persistent: bool,
    /// Whether its client waits for the certificate or for the commit only.
    certified: bool,
    attempt: u64,
    gives_up_attempt_at: u64,
    /// The newest admission.
    pub(crate) admission: Option<Admission>,
    pub(crate) outcome: Option<Outcome>,
    /// The cluster refuses it for good.
    pub(crate) refused: Option<Admission>,
}

impl Call {
    pub(crate) fn key(&self) -> Digest {
        self.submission.request.key()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.persistent && self.outcome.is_none() && self.refused.is_none()
    }
}

impl World {
    pub(crate) fn submission(&mut self, name: &str, payload: &[u8]) -> Submission {
        let salt = std::array::from_fn(|_| u8::try_from(self.rng.below(256)).expect("a byte"));
        Submission {
            origin: id_of(0),
            request: Request {
                client: "client".into(),
                request_id: name.into(),
                deadline_ms: self.wall() + 24 * 3600 * 1000,
            },
            salt,
            payload: payload.to_vec(),
            required_quorum: None,
            ttl_ms: 5_000,
        }
    }

    fn call(&mut self, submission: Submission, via: usize, persistent: bool) -> usize {
        let certified = self.rng.chance(700);
        self.calls.push(Call {
            submission,
            via,
            persistent,
            certified,
            attempt: 0,
            gives_up_attempt_at: 0,
            admission: None,
            outcome: None,
            refused: None,
        });
        self.calls.len() - 1
    }

    /// Hands a submission to one node's core, as its shell would, and tells what the core said.
    pub(crate) fn submit(&mut self, node: usize, submission: Submission) -> Admission {
        let call = self.call(submission, node, false);
        self.hand_in(call, node);
        self.calls[call].admission.clone().expect("a core answers a submission at once")
    }

    /// A small proposal to the leader, by name.
    pub(crate) fn propose(&mut self, node: usize, name: &str) -> Admission {
        let submission = self.submission(name, name.as_bytes());
        self.submit(node, submission)
    }

    /// A client that tries until it knows the outcome.
    pub(crate) fn start_call(&mut self, submission: Submission) -> usize {
        let via = self.some_member();
        let call = self.call(submission, via, true);
        self.try_call(call);
        call
    }

    pub(crate) fn open_calls(&self) -> usize {
        self.calls.iter().filter(|c| c.is_open()).count()
    }

    /// What a proposal came to at one node.
    pub(crate) fn outcome_at(&self, node: usize, name: &str) -> Option<Outcome> {
        let request = Request { client: "client".into(), request_id: name.into(), deadline_ms: 0 };
        self.nodes[node].machine.requests.get(&request.key()).copied()
    }

    fn try_call(&mut self, call: usize) {
        let now = self.now;
        let via = self.calls[call].via;
        let c = &mut self.calls[call];
        c.attempt += 1;
        c.gives_up_attempt_at = now + PATIENCE_US;
        let attempt = c.attempt;
        self.at(LOOK_AGAIN_US, Event::Client { call, attempt });
        if !self.is_up(via) {
            return;
        }
        self.coverage.count("client", if attempt == 1 { "first attempt" } else { "further attempt" });
        match self.leader_of(via) {
            Some(leader) if leader == via => self.hand_in(call, via),
            Some(leader) => {
                let event = |attempt| Event::Forward { call, attempt, to: leader };
                self.transmit(via, leader, event, attempt);
            }
            None => {}
        }
    }

    pub(crate) fn forwarded(&mut self, call: usize, attempt: u64, to: usize) {
        if self.is_up(to) {
            let late = self.calls[call].attempt != attempt;
            self.coverage.count("client", if late { "late attempt arrives" } else { "attempt forwarded" });
            self.hand_in(call, to);
        }
    }

    /// The shell's part of admission: what was applied is known to the state machine, the rest to the core.
    fn hand_in(&mut self, call: usize, node: usize) {
        let mut submission = self.calls[call].submission.clone();
        if self.nodes[node].machine.requests.contains_key(&submission.request.key()) {
            self.coverage.count("client", "repeat of an applied request");
            return;
        }
        submission.origin = id_of(self.calls[call].via);
        self.input(node, Input::Submit { handle: call as u64, submission });
    }

    pub(crate) fn admitted(&mut self, _node: usize, handle: u64, admission: Admission) {
        let name = match &admission {
            Admission::Appended { .. } => "appended",
            Admission::Balloted { .. } => "balloted",
            Admission::Duplicate { .. } => "duplicate",
            Admission::RequestIdReused => "request id reused",
            Admission::NotLeader { .. } => "not leader",
            Admission::Backpressure => "backpressure",
            Admission::RequestExpired => "request expired",
            Admission::InvalidQuorum { .. } => "invalid quorum",
            Admission::ClockOutOfBound => "clock out of bound",
            Admission::Transferring => "transferring",
            Admission::PayloadTooLarge { .. } => "payload too large",
            Admission::InvalidRequestId => "invalid request id",
        };
        self.coverage.count("admission", name);
        let call = &mut self.calls[usize::try_from(handle).expect("a call")];
        if matches!(admission, Admission::InvalidQuorum { .. } | Admission::RequestIdReused) {
            call.refused = Some(admission.clone());
        }
        call.admission = Some(admission);
    }

    pub(crate) fn client_looks(&mut self, call: usize, attempt: u64) {
        let c = &self.calls[call];
        if !c.is_open() || c.attempt != attempt {
            return;
        }
        let (via, key, certified) = (c.via, c.key(), c.certified);
        if self.is_up(via)
            && let Some(outcome) = self.nodes[via].machine.requests.get(&key).copied()
            && (!certified || self.covered(via) >= outcome.index)
        {
            let verdict = self.invariants.outcomes.told(key, outcome, &self.invariants.committed.ledger);
            self.demand(verdict);
            self.coverage.count("client", "outcome told");
            self.calls[call].outcome = Some(outcome);
            return;
        }
        let turned_away = matches!(
            self.calls[call].admission,
            Some(
                Admission::NotLeader { .. }
                    | Admission::Backpressure
                    | Admission::ClockOutOfBound
                    | Admission::Transferring
            )
        );
        if self.now >= self.calls[call].gives_up_attempt_at || turned_away || !self.is_up(via) {
            self.calls[call].admission = None;
            self.calls[call].via = self.some_member();
            self.try_call(call);
        } else {
            self.at(LOOK_AGAIN_US, Event::Client { call, attempt });
        }
    }

    fn covered(&self, node: usize) -> LogIndex {
        LogIndex(self.core(node).certificate().map_or(0, |c| c.head.size))
    }

    pub(crate) fn id_index(&self, admission: &Admission) -> usize {
        match admission {
            Admission::NotLeader { leader: Some(leader) } => index_of(leader),
            other => panic!("no leader in {other:?}"),
        }
    }
}
