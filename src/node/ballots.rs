//! Ballots at a member: its answer by policy, rules or application, and the record that makes an answer one for ever.
//!
//! Whether an answer is on record only the store knows, and the store may be waiting for a disk that hangs. So the owner
//! never asks it itself: questions wait here until a thread has looked, and until then nothing about the same request and
//! payload is decided.

use super::executor::{Devices, Executor, Lookup, is_valid};
use crate::api::VoteError;
use crate::certificate::{Kind, MemberTable, Policy};
use crate::core::{Ballot, Input};
use crate::ids::{Digest, ProposalId};
use crate::limits::MAX_TTL_MS;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What an answer is about: request key and content. The same may be asked about under several ids.
pub type Subject = (Digest, Digest);

/// What a thread found out about a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The answer on record.
    pub recorded: Option<bool>,
    /// Of a member table: whether it keeps every rule, proofs of possession included. They cost a pairing each, which is
    /// why the thread checks them.
    pub table: bool,
}

/// Answers on record, as read from the store.
pub type Records = Vec<(Subject, Looked)>;

/// What waits for the record.
pub(super) enum Question {
    /// The core's.
    Asked(Arc<Ballot>),
    /// The application's answer; told once it is durable.
    Vote { id: ProposalId, granted: bool, done: oneshot::Sender<Result<(), VoteError>> },
}

/// Questions whose record is being looked for. Bounded by the core, which has at most
/// [`MAX_BALLOTS`](crate::limits::MAX_BALLOTS) questions open, and by the callers that wait for their votes.
#[derive(Default)]
pub(super) struct Lookups {
    waiting: BTreeMap<Subject, VecDeque<Question>>,
    /// One thread looks at a time: a hanging disk shall not take the runtime's threads one by one.
    looking: bool,
}

impl Lookups {
    /// The core has no use for an answer any more.
    pub(super) fn withdraw(&mut self, id: &ProposalId) {
        for questions in self.waiting.values_mut() {
            questions.retain(|question| !matches!(question, Question::Asked(ballot) if ballot.id == *id));
        }
    }

    /// What a question that still waits is about.
    fn subject_of(&self, id: &ProposalId) -> Option<Subject> {
        let asks = |q: &Question| matches!(q, Question::Asked(ballot) if ballot.id == *id);
        self.waiting.iter().find(|(_, questions)| questions.iter().any(asks)).map(|(subject, _)| *subject)
    }

    fn next(&mut self, subject: &Subject) -> Option<Question> {
        let questions = self.waiting.get_mut(subject)?;
        let next = questions.pop_front();
        if next.is_none() {
            self.waiting.remove(subject);
        }
        next
    }
}

fn subject(ballot: &Ballot) -> Subject {
    (ballot.request.key(), crate::core::content(&ballot.payload))
}

impl<D: Devices> Executor<D> {
    pub(super) fn on_asked(&mut self, ballot: Arc<Ballot>) {
        self.look_up_answer(ballot);
    }

    pub(super) fn on_own_vote(&mut self, id: ProposalId, granted: bool, done: oneshot::Sender<Result<(), VoteError>>) {
        let policy = self.policy();
        // An application may be faster than the look at the record: its answer then waits behind the question.
        let open = self.devices.ballot(&id).map(|ballot| subject(&ballot)).or_else(|| self.lookups.subject_of(&id));
        let refusal = match open {
            _ if policy != Policy::Manual => VoteError::NotManual { policy },
            None => VoteError::NoBallot { id },
            Some(subject) => return self.look_up(subject, Question::Vote { id, granted, done }),
        };
        // A caller that gave up is no news.
        let _gone = done.send(Err(refusal));
    }

    /// Looks for an answer on record to a question of the core, and answers it then.
    pub(super) fn look_up_answer(&mut self, ballot: Arc<Ballot>) {
        self.look_up(subject(&ballot), Question::Asked(ballot));
    }

    fn look_up(&mut self, subject: Subject, question: Question) {
        if let Some((granted, _)) = self.recent_casts.get(&subject) {
            let looked = Looked { recorded: Some(*granted), table: false };
            return self.answer(question, &subject, looked);
        }
        self.lookups.waiting.entry(subject).or_default().push_back(question);
        self.read_records();
    }

    fn read_records(&mut self) {
        if self.lookups.looking || self.lookups.waiting.is_empty() {
            return;
        }
        self.lookups.looking = true;
        let table = |questions: &VecDeque<Question>| {
            questions.iter().find_map(|q| match q {
                Question::Asked(ballot) if ballot.kind == Kind::Epoch => Some(ballot.clone()),
                _ => None,
            })
        };
        let subjects: Vec<(Subject, Option<Arc<Ballot>>)> =
            self.lookups.waiting.iter().map(|(subject, questions)| (*subject, table(questions))).collect();
        self.devices.look_up(Lookup::Records(subjects));
    }

    /// What was on record when a thread looked. Between its look and now nothing about these subjects was decided here,
    /// because whatever is decided waits for this.
    pub(super) fn on_records(&mut self, records: Records) {
        self.lookups.looking = false;
        for (subject, looked) in records {
            while let Some(question) = self.lookups.next(&subject) {
                // An earlier question of the same subject may have been answered a moment ago.
                let recent = self.recent_casts.get(&subject).map(|cast| cast.0);
                self.answer(question, &subject, Looked { recorded: recent.or(looked.recorded), ..looked });
                // Its write is under way, and so remembered, before the next is looked at.
                self.carry_out();
            }
        }
        self.read_records();
    }

    fn answer(&mut self, question: Question, subject: &Subject, looked: Looked) {
        match question {
            Question::Asked(ballot) => self.answer_ballot(ballot, looked),
            Question::Vote { id, granted, done } => self.answer_vote(id, granted, done, subject, looked.recorded),
        }
    }

    /// Past its deadline the record of an earlier answer may be gone, and another could contradict it. The log's clock
    /// counts too: it stays when this node's is set back. Judged after the record was read, not before: it may go at any
    /// moment.
    fn is_past(&self, ballot: &Ballot) -> bool {
        ballot.request.deadline_ms < self.devices.now().wall.max(self.core.log_time())
    }

    fn answer_ballot(&mut self, ballot: Arc<Ballot>, looked: Looked) {
        if self.is_past(&ballot) {
            return;
        }
        let id = ballot.id;
        // An answer is for ever: whoever asks again about the same request and payload gets it again.
        if let Some(granted) = looked.recorded {
            return self.feed(Input::Decide { id, granted, on_record: true });
        }
        if ballot.kind == Kind::SnapshotManifest {
            return self.compare(ballot);
        }
        let changes_members = ballot.kind == Kind::Epoch;
        let valid = if changes_members { looked.table && self.holds_key(&ballot) } else { is_valid(&ballot.payload) };
        let granted = match self.policy() {
            Policy::Auto => valid,
            // The rules speak of operations on the registry, not of members.
            Policy::Rules => valid && (changes_members || self.rules.grants(&ballot)),
            Policy::Manual if !valid => false,
            Policy::Manual => {
                // As the core bounds it: a leader may say what it likes.
                let until = self.devices.now().mono + ballot.ttl_ms.min(MAX_TTL_MS);
                self.devices.open_ballot(ballot, until);
                return;
            }
        };
        self.feed(Input::Decide { id, granted, on_record: false });
    }

    /// Whether this store can sign by its row in the table that a change would bring.
    fn holds_key(&self, ballot: &Ballot) -> bool {
        let holds = MemberTable::decode_granted(&ballot.payload).is_ok_and(|t| self.core.holds_its_key_in(&t));
        if !holds {
            tracing::error!("a change of members names a key for this node that its store does not hold: it is denied");
        }
        holds
    }

    /// The same request and payload may be asked about under another id: one answer holds for both, or this member would
    /// sign a grant and a denial of one thing.
    fn answer_vote(
        &mut self,
        id: ProposalId,
        granted: bool,
        done: oneshot::Sender<Result<(), VoteError>>,
        subject: &Subject,
        recorded: Option<bool>,
    ) {
        // Decided, expired or withdrawn while the record was read?
        let open = self.devices.ballot(&id).is_some_and(|ballot| !self.is_past(&ballot));
        let answer = match recorded {
            _ if !open => Err(VoteError::NoBallot { id }),
            Some(recorded) if recorded != granted => Err(VoteError::AlreadyCast { id, granted: recorded }),
            _ => {
                self.devices.withdraw(&id);
                self.feed(Input::Decide { id, granted, on_record: recorded.is_some() });
                match (self.core.is_answered(&id), recorded) {
                    // Withdrawn by the core in this very turn.
                    (false, _) => Err(VoteError::NoBallot { id }),
                    (true, Some(_)) => Ok(()),
                    (true, None) => {
                        self.cast_waiters.insert(*subject, done);
                        return;
                    }
                }
            }
        };
        // A caller that gave up is no news.
        let _gone = done.send(answer);
    }
}
