//! The devices under a simulated node's executor: they write down, in order, what they are asked, for the world to see
//! to as soon as the executor returns.

use concordat::api::ProposeError;
use concordat::certificate::{Entry, HeadCertificate, PublicKey, TableInForce};
use concordat::core::{Alarm, Ballot, Crypto, Effect, Now, Tables, Write};
use concordat::ids::{Digest, LogIndex, NodeId, ProposalId};
use concordat::node::executor::{Devices, Lookup, Observed, SnapshotJob, View};
use concordat::registry::{Answered, State};
use concordat::telemetry::Outcome;
use concordat::transport::Peer;
use concordat::wire::Frame;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What an executor asks for.
pub(crate) enum Asked {
    /// The core wants this: what follows comes of it.
    Witness(Effect),
    Send(NodeId, Frame),
    Persist(u64, Write),
    Compute(Crypto),
    LookUp(Lookup),
    Apply(Vec<Arc<Entry>>),
    Restore(LogIndex),
    Snapshot(SnapshotJob),
    SettleKeys(TableInForce),
    Connect(Vec<Peer>),
    Certified(Arc<HeadCertificate>),
    /// The application's answer is wanted.
    Open(Arc<Ballot>),
    Alarm(Alarm),
    /// A write was not taken.
    Refused(Write),
    /// A proposal of this node's clients came to its end.
    Ended(Outcome),
}

pub(crate) struct SimDevices {
    pub(crate) now: Now,
    pub(crate) elapsed: Duration,
    pub(crate) asked: Vec<Asked>,
    /// As applied here.
    pub(crate) state: State,
    pub(crate) keys: Vec<PublicKey>,
    /// Open to the application, each until a monotonic time.
    pub(crate) ballots: BTreeMap<ProposalId, (Arc<Ballot>, u64)>,
    pub(crate) view: View,
    /// Its disk takes no more writes.
    pub(crate) full: bool,
}

impl SimDevices {
    pub(crate) fn new(now: Now, state: State, keys: Vec<PublicKey>) -> Self {
        Self {
            now,
            elapsed: Duration::ZERO,
            asked: Vec::new(),
            state,
            keys,
            ballots: BTreeMap::new(),
            view: View::default(),
            full: false,
        }
    }
}

impl Devices for SimDevices {
    fn now(&self) -> Now {
        self.now
    }

    fn elapsed(&self) -> Duration {
        self.elapsed
    }

    fn send(&mut self, to: NodeId, frame: Frame) {
        self.asked.push(Asked::Send(to, frame));
    }

    fn persist(&mut self, seq: u64, write: Write) -> Result<(), String> {
        if self.full {
            self.asked.push(Asked::Refused(write));
            return Err("no space left on the device".into());
        }
        self.asked.push(Asked::Persist(seq, write));
        Ok(())
    }

    fn compute(&mut self, job: Crypto) {
        self.asked.push(Asked::Compute(job));
    }

    fn look_up(&mut self, job: Lookup) {
        self.asked.push(Asked::LookUp(job));
    }

    fn apply(&mut self, entries: Vec<Arc<Entry>>) {
        self.asked.push(Asked::Apply(entries));
    }

    fn restore(&mut self, index: LogIndex) {
        self.asked.push(Asked::Restore(index));
    }

    fn snapshot(&mut self, job: SnapshotJob) {
        self.asked.push(Asked::Snapshot(job));
    }

    fn answered(&self, key: &Digest) -> Option<Answered> {
        self.state.answered(key).cloned()
    }

    fn requests_len(&self) -> usize {
        self.state.requests_len()
    }

    fn public_keys(&self) -> Vec<PublicKey> {
        self.keys.clone()
    }

    fn settle_keys(&mut self, table: &TableInForce) {
        self.asked.push(Asked::SettleKeys(table.clone()));
    }

    fn connect(&mut self, _tables: &Arc<Tables>, peers: Vec<Peer>) {
        self.asked.push(Asked::Connect(peers));
    }

    fn certified(&mut self, certificate: Arc<HeadCertificate>) {
        self.asked.push(Asked::Certified(certificate));
    }

    fn publish(&mut self, view: View) {
        self.view = view;
    }

    fn open_ballot(&mut self, ballot: Arc<Ballot>, until: u64) {
        self.ballots.insert(ballot.id, (ballot.clone(), until));
        self.asked.push(Asked::Open(ballot));
    }

    fn withdraw(&mut self, id: &ProposalId) {
        self.ballots.remove(id);
    }

    fn ballot(&self, id: &ProposalId) -> Option<Arc<Ballot>> {
        self.ballots.get(id).map(|open| open.0.clone())
    }

    fn http_address(&self, _id: &NodeId) -> Option<String> {
        None
    }

    /// The simulator's clients ask again by themselves, whatever they are told.
    fn give_up(&mut self, _key: &Digest, _why: ProposeError) {}

    fn note_http(&mut self, _id: NodeId, _address: Option<String>) {}

    fn observe(&mut self, what: Observed<'_>) {
        match what {
            Observed::Proposal(outcome) => self.asked.push(Asked::Ended(outcome)),
            Observed::Alarm(alarm) => self.asked.push(Asked::Alarm(alarm.clone())),
            Observed::Commit(_) | Observed::Persist(_) | Observed::Role { .. } => {}
        }
    }

    fn witness(&mut self, effect: &Effect) {
        // The others are seen as what they ask of a device.
        if !matches!(effect, Effect::Send { .. } | Effect::Persist { .. } | Effect::Crypto(_)) {
            self.asked.push(Asked::Witness(effect.clone()));
        }
    }
}
