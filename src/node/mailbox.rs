//! Where threads leave what they finished for the owner loop. Never blocks them: what is in here is bounded by the work
//! that the core has asked for, and a full channel back to the owner could lock it against its own helpers.

use super::ballots::Records;
use super::executor::Mail;
use crate::core::Input;
use crate::ids::LogIndex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct Mailbox {
    inputs: Mutex<Vec<Input>>,
    persisted: AtomicU64,
    applied: AtomicU64,
    records: Mutex<Option<Records>>,
    prunable: Mutex<Option<LogIndex>>,
    failure: Mutex<Option<String>>,
    wake: Notify,
}

impl Mailbox {
    pub(super) fn put(&self, input: Input) {
        self.inputs.lock().expect("no holder of this lock panics").push(input);
        self.wake.notify_one();
    }

    pub(super) fn persisted(&self, seq: u64) {
        self.persisted.fetch_max(seq, Ordering::AcqRel);
        self.wake.notify_one();
    }

    pub(super) fn applied(&self, index: LogIndex) {
        self.applied.fetch_max(index.0, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// A look at the ballot answers on record is done.
    pub(super) fn looked(&self, records: Records) {
        *self.records.lock().expect("no holder of this lock panics") = Some(records);
        self.wake.notify_one();
    }

    /// The last entry that may go as far as retention by bytes and age is concerned; said before a snapshot is offered.
    pub(super) fn prunable(&self, upto: LogIndex) {
        *self.prunable.lock().expect("no holder of this lock panics") = Some(upto);
    }

    /// Something failed for good: the node must stop and say this.
    pub(super) fn fail(&self, why: String) {
        self.failure.lock().expect("no holder of this lock panics").get_or_insert(why);
        self.wake.notify_one();
    }

    /// Runs a thread's work; a panic in it stops the node for all to see.
    pub(super) fn guard(&self, what: &str, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.fail(format!("internal error: {what} panicked; please report it with the log"));
        }
    }

    pub(super) fn take(&self) -> Mail {
        let inputs = std::mem::take(&mut *self.inputs.lock().expect("no holder of this lock panics"));
        Mail {
            inputs,
            // After the inputs: what was said before one of them is here.
            prunable: *self.prunable.lock().expect("no holder of this lock panics"),
            persisted: self.persisted.load(Ordering::Acquire),
            applied: LogIndex(self.applied.load(Ordering::Acquire)),
            records: self.records.lock().expect("no holder of this lock panics").take(),
            failure: self.failure.lock().expect("no holder of this lock panics").clone(),
        }
    }

    /// Cancel-safe: a wake-up that is not waited for is kept for the next wait.
    pub(super) async fn ready(&self) {
        self.wake.notified().await;
    }
}
