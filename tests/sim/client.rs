//! Clients: each call is one request, sent through some node, and sent again under the same request id through another
//! until its outcome is known.

use crate::history::{Held, Op, What};
use crate::machine::Outcome;
use crate::members::{id_of, index_of};
use crate::world::{Event, World};
use concordat::api::ProposeError;
use concordat::certificate::Request;
use concordat::core::{Admission, Submission, content};
use concordat::ids::{Digest, LogIndex, ProposalId};
use concordat::node::executor;
use concordat::registry::Outcome as Answer;
use concordat::wire::Frame;
use tokio::sync::oneshot;

/// How long a client waits for an outcome before it asks through another node, microseconds.
const PATIENCE_US: u64 = 1_200_000;
const LOOK_AGAIN_US: u64 = 150_000;

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) submission: Submission,
    key: Digest,
    via: usize,
    /// Whether it tries again by itself.
    persistent: bool,
    /// Whether its client waits for the certificate or for the commit only.
    certified: bool,
    attempt: u64,
    gives_up_attempt_at: u64,
    /// Told once a leader has taken it.
    taken: Option<oneshot::Receiver<Result<ProposalId, ProposeError>>>,
    pub(crate) outcome: Option<Outcome>,
    /// The cluster refuses it for good.
    pub(crate) refused: bool,
}

impl Call {
    pub(crate) fn key(&self) -> Digest {
        self.key
    }

    pub(crate) fn is_open(&self) -> bool {
        self.persistent && self.outcome.is_none() && !self.refused
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
            key: submission.request.key(),
            submission,
            via,
            persistent,
            certified,
            attempt: 0,
            gives_up_attempt_at: 0,
            taken: None,
            outcome: None,
            refused: false,
        });
        if persistent {
            self.open.insert(self.calls.len() - 1);
        }
        self.calls.len() - 1
    }

    /// Hands a submission to one node, and tells what it said at once.
    pub(crate) fn submit(&mut self, node: usize, submission: Submission) -> Admission {
        let call = self.call(submission, node, false);
        self.admitted = None;
        self.hand_in(call, node);
        if let Some(admission) = self.admitted.take() {
            return admission;
        }
        // The core was not asked.
        let told = self.calls[call].taken.as_mut().expect("just asked").try_recv();
        match told.expect("a leader, or whoever forwards nothing, answers a submission at once") {
            Ok(id) => Admission::Duplicate { id },
            Err(ProposeError::RequestIdReused) => Admission::RequestIdReused,
            Err(ProposeError::Backpressure) => Admission::Backpressure,
            Err(ProposeError::NotLeader { leader, .. }) => Admission::NotLeader { leader },
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Hands a submission of another node's client to a node, which keeps nothing of it but for its core.
    pub(crate) fn forward(&mut self, from: usize, node: usize, mut submission: Submission) -> Admission {
        submission.origin = id_of(from);
        self.admitted = None;
        self.frame(from, node, Frame::Submit { handle: 0, submission });
        self.admitted.take().expect("the core was asked")
    }

    /// A small proposal to the leader, by name.
    pub(crate) fn propose(&mut self, node: usize, name: &str) -> Admission {
        let submission = self.named(name);
        self.submit(node, submission)
    }

    /// As a proposal by name goes.
    pub(crate) fn named(&mut self, name: &str) -> Submission {
        self.submission(name, format!("{name:?}").as_bytes())
    }

    /// Asks one node once; what it says comes later, see [`World::told`].
    pub(crate) fn ask(&mut self, node: usize, submission: Submission) -> usize {
        let call = self.call(submission, node, false);
        self.hand_in(call, node);
        call
    }

    /// What a node said to [`World::ask`], once.
    pub(crate) fn told(&mut self, call: usize) -> Option<Result<ProposalId, ProposeError>> {
        self.calls[call].taken.as_mut().expect("asked").try_recv().ok()
    }

    /// A client that tries until it knows the outcome.
    pub(crate) fn start_call(&mut self, submission: Submission) -> usize {
        let via = self.some_member();
        let call = self.call(submission, via, true);
        self.try_call(call);
        call
    }

    /// A client that sets a config key, sometimes only if the revision is the newest one that it could know.
    pub(crate) fn start_write(&mut self, key: usize, name: &str) {
        let value = self.calls.len() as u64 + 1;
        let newest = self.history.newest_revision(key);
        let only_if = self.rng.chance(400).then(|| if self.rng.chance(800) { newest } else { 0 });
        let condition = only_if.map_or(String::new(), |r| format!(",\"if_revision\":{r}"));
        let payload = format!("{{\"op\":\"set_config\",\"key\":\"k{key}\",\"value\":{value}{condition}}}");
        let submission = self.submission(name, payload.as_bytes());
        let called = self.now;
        // Before the client sends anything: it may be answered at once.
        self.history.open.insert(self.calls.len(), (key, value, only_if, called));
        self.start_call(submission);
    }

    /// The registry's answer to a write whose outcome is known.
    fn write_answered(&mut self, call: usize, via: usize) {
        let Some((key, value, only_if, called)) = self.history.open.remove(&call) else { return };
        let state = &self.nodes[via].executor.as_mut().expect("just asked").devices().state;
        let answered = state.answered(&self.calls[call].key).expect("just applied");
        let ours = content(&self.calls[call].submission.payload) == answered.content;
        let answer = answered.outcome.clone();
        assert!(ours || matches!(answer, Answer::Aborted { .. }), "nobody else uses the ids of writes");
        let (name, what) = match answer {
            Answer::ConfigSet { revision } => {
                ("set", Some(What::Set { only_if, held: Held { value, revision: revision.0 } }))
            }
            Answer::Conflict { actual } => {
                let only_if = only_if.expect("a conflict needs a condition");
                ("conflict", Some(What::Conflict { only_if, actual: actual.map_or(0, |r| r.0) }))
            }
            // Nobody may ever read its value.
            Answer::Aborted { .. } => ("no effect", None),
            other => panic!("a write of a config key came to {other:?}"),
        };
        self.coverage.count("registry", name);
        if let Some(what) = what {
            self.history.answered(key, Op { called, answered: self.now, what });
        }
    }

    pub(crate) fn open_calls(&self) -> usize {
        self.open.len()
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
        if self.nodes[via].machine.requests.contains_key(&self.calls[call].key()) {
            self.coverage.count("client", "repeat of an applied request");
        } else {
            self.hand_in(call, via);
        }
    }

    /// What a handle does once it has seen that the request is not applied.
    fn hand_in(&mut self, call: usize, node: usize) {
        let mut submission = self.calls[call].submission.clone();
        submission.origin = id_of(node);
        let (taken, told) = oneshot::channel();
        self.calls[call].taken = Some(told);
        self.note(node, || format!("a client proposes {}", submission.request.request_id));
        self.event(node, executor::Event::Submit { submission, taken });
    }

    pub(crate) fn admitted(&mut self, admission: &Admission) {
        let name = match admission {
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
        self.admitted = Some(admission.clone());
    }

    pub(crate) fn client_looks(&mut self, call: usize, attempt: u64) {
        let c = &self.calls[call];
        if !c.is_open() || c.attempt != attempt {
            return;
        }
        let (via, key, certified) = (c.via, c.key(), c.certified);
        if self.is_up(via)
            && !self.is_paused(via)
            && let Some(outcome) = self.nodes[via].machine.requests.get(&key).copied()
            && (!certified || self.covered(via) >= outcome.index)
        {
            let verdict = self.invariants.outcomes.told(key, outcome, &self.invariants.committed.ledger);
            self.demand(verdict);
            self.coverage.count("client", "outcome told");
            self.calls[call].outcome = Some(outcome);
            self.open.remove(&call);
            self.write_answered(call, via);
            return;
        }
        let turned_away = match self.calls[call].taken.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(Ok(_))) => {
                self.coverage.count("client", "told that it was taken");
                false
            }
            Some(Ok(Err(why))) => {
                self.coverage.count("client", if why.is_retryable() { "sent away" } else { "refused" });
                self.calls[call].refused |=
                    matches!(why, ProposeError::InvalidQuorum { .. } | ProposeError::RequestIdReused);
                true
            }
            Some(Err(_)) | None => false,
        };
        if self.calls[call].refused {
            self.open.remove(&call);
            return;
        }
        if self.now >= self.calls[call].gives_up_attempt_at || turned_away || !self.is_up(via) {
            self.calls[call].taken = None;
            self.calls[call].via = self.some_member();
            self.try_call(call);
        } else {
            self.at(LOOK_AGAIN_US, Event::Client { call, attempt });
        }
    }

    fn covered(&self, node: usize) -> LogIndex {
        self.nodes[node].shown
    }

    pub(crate) fn id_index(&self, admission: &Admission) -> usize {
        match admission {
            Admission::NotLeader { leader: Some(leader) } => index_of(leader),
            other => panic!("no leader in {other:?}"),
        }
    }
}
