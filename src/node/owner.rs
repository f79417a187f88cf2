//! The owner loop: the one task that owns the core. It feeds inputs, drains, and executes effects; all else is asked of
//! other threads and comes back as input.

use super::Ended;
use super::applied::Applier;
use super::ballots::{Lookups, Subject};
use super::certifying::Certifying;
use super::crypto::Pool;
use super::delivered::Delivered;
use super::mailbox::Mailbox;
use super::pending::{Origin, Pending};
use super::shared::{Shared, View};
use crate::api::{ProposeError, Role, VoteError};
use crate::certificate::Kind;
use crate::config::Rules;
use crate::core::{Admission, Alarm, Core, Effect, Input, Submission, Write};
use crate::ids::{Digest, LogIndex, NodeId, ProposalId};
use crate::storage::Committer;
use crate::transport::{Inbox, Incoming};
use crate::wire::Frame;
use crate::{limits, registry};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Inputs taken from one source before the others get their turn.
const BATCH: usize = 512;
/// Answers to ballots remembered in memory, beyond those on record in the store.
const MAX_RECENT_CASTS: usize = 65_536;

/// What handles ask of the owner.
pub(super) enum Event {
    /// A proposal that came in here.
    Submit {
        submission: Submission,
        /// Told once a leader has taken it, or that none will.
        taken: oneshot::Sender<Result<ProposalId, ProposeError>>,
    },
    /// The application's answer to a ballot; told once it is durable.
    Vote { id: ProposalId, granted: bool, done: oneshot::Sender<Result<(), VoteError>> },
    /// Stop.
    Close,
    /// As if it had come in from where such inputs come from.
    #[cfg(test)]
    Inject(Input),
}

pub(super) struct Owner {
    pub(super) core: Core,
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) committer: Committer,
    pub(super) pool: Pool,
    pub(super) applier: Applier,
    pub(super) rules: Rules,
    pub(super) max_pending: usize,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) incoming: Inbox,
    pub(super) pending: BTreeMap<Digest, Pending>,
    pub(super) delivered: Delivered,
    pub(super) certifying: Certifying,
    pub(super) origins: BTreeMap<u64, Origin>,
    pub(super) next_handle: u64,
    pub(super) retry_at: u64,
    /// Answers to ballots, each with the sequence number of its write.
    pub(super) recent_casts: HashMap<Subject, (bool, u64)>,
    pub(super) lookups: Lookups,
    pub(super) cast_waiters: HashMap<Subject, oneshot::Sender<Result<(), VoteError>>>,
    pub(super) cast_writes: Vec<(u64, oneshot::Sender<Result<(), VoteError>>)>,
    pub(super) persisted: u64,
    /// Writes on their way to the disk, with the time (since the clock's start) at which each was handed over.
    pub(super) writing: VecDeque<(u64, Duration)>,
    pub(super) applied: LogIndex,
    pub(super) role: Role,
    pub(super) stop: Option<Ended>,
}

impl Owner {
    pub(super) async fn run(mut self) {
        let (mut events, mut frames) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        self.turn();
        while self.stop.is_none() {
            let wake = self.shared.clock.instant(self.core.deadline().min(self.retry_at));
            // Every branch is cancel-safe: `recv_many` and the inbox take nothing unless they complete, and the mailbox
            // keeps its wake-up.
            tokio::select! {
                n = self.events.recv_many(&mut events, BATCH) => if n == 0 { events.push(Event::Close) },
                frame = self.incoming.recv() => match frame {
                    Some(frame) => frames.push(frame),
                    // Only this task closes the transport, after the loop.
                    None => self.stop = Some(Ended::Halted("the socket to the peers failed; see the log".into())),
                },
                () = self.mailbox.ready() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            // Whatever else is there comes along, so that one drain makes one write and one append of it all.
            while events.len() < BATCH
                && let Ok(event) = self.events.try_recv()
            {
                events.push(event);
            }
            while frames.len() < BATCH
                && let Some(frame) = self.incoming.try_recv()
            {
                frames.push(frame);
            }
            for frame in frames.drain(..) {
                self.on_frame(frame);
            }
            for event in events.drain(..) {
                self.on_event(event);
            }
            self.take_mail();
            self.turn();
        }
        self.finish().await;
    }

    fn take_mail(&mut self) {
        let mail = self.mailbox.take();
        if mail.persisted > self.persisted {
            self.persisted = mail.persisted;
            self.observe_writes();
            self.feed(Input::Persisted { seq: mail.persisted });
            let (done, waiting) =
                std::mem::take(&mut self.cast_writes).into_iter().partition(|w| w.0 <= self.persisted);
            self.cast_writes = waiting;
            for (_, waiter) in done {
                // A caller that gave up is no news.
                let _gone = waiter.send(Ok(()));
            }
        }
        if mail.applied > self.applied {
            self.applied = mail.applied;
            self.delivered.apply(mail.applied);
            self.feed(Input::Applied { index: mail.applied });
        }
        if let Some(certificate) = self.certifying.shown(self.persisted, self.applied) {
            self.shared.certificate.send_replace(Some(certificate));
        }
        for input in mail.inputs {
            self.feed(input);
        }
        if let Some(records) = mail.records {
            self.on_records(records);
        }
        if let Some(why) = mail.failure {
            self.stop.get_or_insert(Ended::Halted(why));
        }
    }

    fn observe_writes(&mut self) {
        let now = self.shared.clock.elapsed();
        while let Some((_, since)) = self.writing.pop_front_if(|(seq, _)| *seq <= self.persisted) {
            self.shared.telemetry.persist(now.saturating_sub(since).as_secs_f64());
        }
    }

    pub(super) fn feed(&mut self, input: Input) {
        self.core.step(self.shared.clock.now(), input);
    }

    /// Time, then drain, then every effect; again while effects brought new inputs about.
    fn turn(&mut self) {
        let now = self.shared.clock.now().mono;
        if now >= self.core.deadline() {
            self.feed(Input::Tick);
        }
        if now >= self.retry_at {
            self.retry_pending(now);
        }
        self.carry_out();
        self.publish();
    }

    pub(super) fn carry_out(&mut self) {
        loop {
            let effects = self.core.drain();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.execute(effect);
            }
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                self.shared.transport.send(to, Frame::Core(message));
            }
            Effect::Persist { seq, write } => self.persist(seq, write),
            Effect::Crypto(job) => self.pool.submit(job),
            Effect::Fetch { peer, session, from, to } => self.fetch(peer, session, from, to),
            Effect::Commit { entries, .. } => {
                for entry in &entries {
                    self.on_committed(entry);
                }
                self.delivered.deliver(&entries);
                self.applier.apply(entries);
            }
            // Announced when its write, which came before this, is durable.
            Effect::Certified(_) => {}
            Effect::Admitted { handle, admission } => self.on_admitted(handle, admission),
            Effect::Ask { ballot } => self.on_asked(ballot),
            Effect::Withdraw { id } => {
                self.lookups.withdraw(&id);
                self.shared.withdraw(&id);
            }
            Effect::Role { role, term, leader } => self.on_role(role, term, leader),
            Effect::Alarm(alarm) => self.on_alarm(&alarm),
            Effect::Halt(why) => {
                tracing::error!(%why, "this node halts");
                self.stop.get_or_insert(Ended::Halted(why.to_string()));
            }
        }
    }

    fn persist(&mut self, seq: u64, write: Write) {
        if let Some(cast) = &write.cast {
            let key = (cast.request_key, cast.content);
            // Until the write is durable, the answer can only be found here.
            if self.recent_casts.len() >= MAX_RECENT_CASTS {
                let persisted = self.persisted;
                self.recent_casts.retain(|_, cast| cast.1 > persisted);
            }
            self.recent_casts.insert(key, (cast.granted, seq));
            if let Some(waiter) = self.cast_waiters.remove(&key) {
                self.cast_writes.push((seq, waiter));
            }
        }
        if let Some(certificate) = &write.certificate {
            self.certifying.written(seq, certificate.clone());
        }
        self.writing.push_back((seq, self.shared.clock.elapsed()));
        if let Err(why) = self.committer.submit(seq, write) {
            self.stop.get_or_insert(Ended::Halted(why.to_string()));
        }
    }

    fn fetch(&self, peer: NodeId, session: u64, from: LogIndex, to: LogIndex) {
        let (store, mailbox) = (self.shared.store.clone(), self.mailbox.clone());
        tokio::task::spawn_blocking(move || {
            let prev = from.prev();
            let read = store.read(from, to, limits::MAX_APPEND_BYTES).and_then(|entries| {
                let prev_term = store.header(prev)?.map(|h| h.term).unwrap_or_default();
                Ok((entries, prev_term))
            });
            match read {
                Ok((entries, prev_term)) => {
                    mailbox.put(Input::Fetched { peer, session, prev_term, prev_root: None, entries });
                }
                Err(why) => mailbox.fail(format!("entries from {from} cannot be read back: {why}")),
            }
        });
    }

    fn on_frame(&mut self, Incoming { from, frame }: Incoming) {
        match frame {
            Frame::Core(message) => self.feed(Input::Receive { from, message }),
            Frame::Submit { handle, submission } => self.on_forwarded(from, handle, submission),
            Frame::Submitted { handle, admission } => {
                if matches!(self.origins.get(&handle), Some(Origin::Forwarded { to, .. }) if *to == from) {
                    self.on_admitted(handle, admission);
                }
            }
            Frame::Hello { http, .. } => self.shared.note_http(from, http),
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Submit { submission, taken } => self.on_submit(submission, taken),
            Event::Vote { id, granted, done } => self.on_own_vote(id, granted, done),
            #[cfg(test)]
            Event::Inject(input) => self.feed(input),
            Event::Close => {
                self.stop.get_or_insert(Ended::Closed);
            }
        }
    }

    // ---- news ----

    fn on_committed(&mut self, entry: &crate::certificate::Entry) {
        let Some(request) = &entry.body.request else { return };
        let key = request.key();
        let Some(pending) = self.pending.remove(&key) else { return };
        self.origins.remove(&pending.handle);
        let since = pending.since;
        // Another payload under the same id came in first, elsewhere.
        let reused = entry.header.kind == Kind::Proposal && !pending.asks_for(&entry.body.payload);
        if let Some(id) = entry.header.proposal_id {
            pending.tell(if reused { Err(ProposeError::RequestIdReused) } else { Ok(id) });
        }
        if reused {
            return;
        }
        let outcome = match (entry.header.kind, entry.header.abort_reason) {
            (Kind::Aborted, Some(crate::certificate::AbortReason::Expired)) => crate::telemetry::Outcome::Expired,
            (Kind::Aborted, _) => crate::telemetry::Outcome::Aborted,
            _ => crate::telemetry::Outcome::Committed,
        };
        self.shared.telemetry.proposal(outcome);
        if entry.header.kind == Kind::Proposal {
            let waited = self.shared.clock.elapsed().saturating_sub(since);
            self.shared.telemetry.commit_latency(waited.as_secs_f64());
        }
    }

    fn on_role(&mut self, role: Role, term: crate::ids::Term, leader: Option<NodeId>) {
        let before = std::mem::replace(&mut self.role, role);
        if before != role {
            self.shared.telemetry.role_transition(before, role);
        }
        tracing::info!(?role, %term, leader = leader.map(|l| l.to_string()), "leadership");
        // What a former leader had taken may be gone with it; the next one recognises what is not.
        for pending in self.pending.values_mut() {
            pending.send_again();
        }
        if leader.is_some() {
            self.retry_at = 0;
        }
    }

    fn on_alarm(&self, alarm: &Alarm) {
        match alarm {
            Alarm::ClockOutOfBound { difference_ms } => {
                tracing::warn!(
                    difference_ms,
                    "this node's clock differs from a quorum's by more than the bound; it does not lead until that is mended: check its time synchronisation"
                );
            }
            Alarm::MalformedAppend { from } => {
                tracing::warn!(%from, "the leader's entries are malformed; they are ignored");
            }
            Alarm::FalseLeader { claimant, term } => {
                tracing::warn!(%claimant, %term, "a claim to lead is not proved; it is ignored");
            }
        }
        self.shared.telemetry.alarm(alarm);
    }

    pub(super) fn publish(&self) {
        let core = &self.core;
        let matched = self.shared.table.table.members().iter();
        let view = View {
            role: core.role(),
            term: core.term(),
            leader: core.leader(),
            committed: core.committed(),
            durable: core.durable(),
            last: core.last_index(),
            pending: self.pending.len() as u64,
            matched: matched.filter_map(|m| Some((m.did, core.matched(&m.did)?))).collect(),
        };
        self.shared.set_view(view);
    }

    async fn finish(self) {
        let Self { shared, committer, pool, applier, pending, cast_waiters, cast_writes, stop, .. } = self;
        for waiting in pending.into_values() {
            waiting.tell(Err(ProposeError::Closed));
        }
        for done in cast_waiters.into_values().chain(cast_writes.into_iter().map(|w| w.1)) {
            let _gone = done.send(Err(VoteError::Closed));
        }
        shared.transport.close().await;
        let ended = tokio::task::spawn_blocking(move || {
            pool.close();
            committer.close();
            applier.close();
        });
        if ended.await.is_err() {
            tracing::error!("a thread of this node panicked while it closed");
        }
        shared.ended.send_replace(Some(stop.unwrap_or(Ended::Closed)));
    }
}

/// What every member refuses to grant: bytes that are no JSON, or a malformed operation.
pub(super) fn is_valid(payload: &[u8]) -> bool {
    serde_json::from_slice(payload).is_ok_and(|value| registry::check_payload(&value).is_ok())
}

/// How often a submission that no leader has taken is sent again.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// An admission that ends a submission with an error, as the caller is told it.
pub(super) fn refusal(admission: &Admission) -> Option<ProposeError> {
    Some(match admission {
        Admission::RequestIdReused => ProposeError::RequestIdReused,
        Admission::Backpressure => ProposeError::Backpressure,
        Admission::RequestExpired => ProposeError::RequestExpired,
        Admission::InvalidQuorum { least, most } => ProposeError::InvalidQuorum { least: *least, most: *most },
        Admission::PayloadTooLarge { size } => {
            ProposeError::PayloadTooLarge { size: *size, limit: limits::MAX_PAYLOAD }
        }
        Admission::InvalidRequestId => ProposeError::InvalidRequestId,
        Admission::Appended { .. }
        | Admission::Balloted { .. }
        | Admission::Duplicate { .. }
        | Admission::NotLeader { .. }
        | Admission::ClockOutOfBound => return None,
    })
}
