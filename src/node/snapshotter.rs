//! The thread that works on images: takes them at marks, fills and checks those that are fetched, lets entries go that
//! a certified one stands for, and moves the database to a fresh one when much of it is dead. Nothing of it delays the
//! owner, the committer or the state machine.

use super::epochs::Outline;
use super::executor::SnapshotJob;
use super::image::{Image, ImageError, chunks};
use super::mailbox::Mailbox;
use super::queries::QueryError;
use super::shared::{Moving, Shared};
use crate::certificate::{Edge, Entry, SnapshotManifest};
use crate::config;
use crate::core::Input;
use crate::ids::{LogIndex, Term};
use crate::registry::State;
use crate::storage::{
    CompactError, DurabilityError, ReadError, RotateError, Rotated, Rotation, RotationStep, SnapshotError, Store,
    Weighing,
};
use std::io::Read as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes of a database below which it is not worth the while to move it.
const WORTH_MOVING: u64 = 64 * 1024 * 1024;
/// Bytes that a step of weighing reads, about.
const WEIGHED: u64 = 4 * 1024 * 1024;
/// Pause before it is looked again whether the former database is still being read.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What an image is made of, read at the mark; the proofs of membership changes are added from the store later.
pub(super) struct Moment {
    pub(super) edge: Edge,
    pub(super) terms: Vec<(LogIndex, Term)>,
    pub(super) proposed_at: u64,
    pub(super) changes: Outline,
    pub(super) finals: Vec<Arc<Entry>>,
    pub(super) state: State,
}

impl Moment {
    pub(super) fn index(&self) -> LogIndex {
        LogIndex(self.edge.size())
    }

    fn image(self, store: &Store) -> Result<Image, QueryError> {
        let Self { edge, terms, proposed_at, changes, finals, state } = self;
        let chain = changes.prove(store, usize::MAX)?;
        Ok(Image { edge, terms, proposed_at, chain, finals, state })
    }
}

/// Why the thread cannot go on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("a snapshot cannot be kept: {0}")]
    Snapshot(#[from] SnapshotError),
    #[error("the proofs of membership changes cannot be read for a snapshot: {0}")]
    Proofs(#[from] QueryError),
    #[error("entries cannot be pruned: {0}")]
    Compaction(#[from] CompactError),
    #[error("the database cannot be read: {0}")]
    Weighing(#[from] ReadError),
    #[error("which database is in force is not known: {0}")]
    Rotation(#[from] DurabilityError),
    #[error(
        "this node's state at the mark {index} is another than a quorum's, which is certified: its replica has diverged; do not start it again: `concordat init --rejoin --even-if-sound` keeps its store aside for the search, begins anew with a fresh key and says how the member is admitted again (ops/README.md)"
    )]
    Diverged { index: LogIndex },
}

enum Job {
    /// The newest mark's moment waits.
    Take,
    Work(SnapshotJob),
    /// A quorum's, certified.
    Compare(SnapshotManifest),
    /// Blocks below the log's base may be left.
    Sweep,
    /// Move the database to a fresh one; tell what that brought, or why it did not come to it.
    Rotate(oneshot::Sender<Result<Rotated, String>>),
}

/// What is done between jobs, step by step, when nothing is to be pruned.
enum Chore {
    None,
    Weigh(Weighing),
    Rotate(Box<Rotation>),
}

/// Its end that the owner and the state machine hold. Bounded by what the core asks for; and of moments, each of which
/// holds a whole state, the newest alone waits: a node that is slower than marks come leaves some out.
#[derive(Clone)]
pub(super) struct Jobs {
    queue: Sender<Job>,
    moment: Arc<Mutex<Option<Moment>>>,
}

impl Jobs {
    pub(super) fn take(&self, moment: Moment) {
        let before = self.moment.lock().expect("no holder of this lock panics").replace(moment);
        if before.is_none() {
            self.put(Job::Take);
        }
    }

    pub(super) fn work(&self, job: SnapshotJob) {
        self.put(Job::Work(job));
    }

    /// Holds this node's own image at a mark, once it has one, against what a quorum says.
    pub(super) fn compare(&self, manifest: SnapshotManifest) {
        self.put(Job::Compare(manifest));
    }

    /// Deletes what is left of a log that was replaced.
    pub(super) fn sweep(&self) {
        self.put(Job::Sweep);
    }

    /// Moves the database to a fresh one, or waits with who asked before.
    pub(super) fn rotate(&self, done: oneshot::Sender<Result<Rotated, String>>) {
        self.put(Job::Rotate(done));
    }

    fn put(&self, job: Job) {
        if self.queue.send(job).is_err() {
            tracing::error!("the snapshot thread is gone");
        }
    }
}

pub(super) struct Snapshotter(JoinHandle<()>);

impl Snapshotter {
    /// Starts it. It ends when all ends of its queue are gone.
    pub(super) fn start(
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        settings: config::Rotation,
    ) -> std::io::Result<(Self, Jobs)> {
        let (queue, jobs) = channel();
        let moment = Arc::new(Mutex::new(None));
        let waiting = moment.clone();
        let thread = std::thread::Builder::new().name("snapshots".into()).spawn(move || {
            let mailbox_of = mailbox.clone();
            let worker = Worker {
                shared,
                mailbox: mailbox_of,
                waiting,
                settings,
                fetching: None,
                compact: LogIndex::ZERO,
                pruning: false,
                chore: Chore::None,
                due: Duration::ZERO,
                asked: Vec::new(),
                smallest: 0,
            };
            mailbox.guard("the snapshot thread", || worker.run(&jobs));
        })?;
        Ok((Self(thread), Jobs { queue, moment }))
    }

    pub(super) fn close(self) {
        if self.0.join().is_err() {
            tracing::error!("the snapshot thread panicked");
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    waiting: Arc<Mutex<Option<Moment>>>,
    settings: config::Rotation,
    fetching: Option<Arc<SnapshotManifest>>,
    /// Entries up to here are to go.
    compact: LogIndex,
    /// Some of them may be there still.
    pruning: bool,
    chore: Chore,
    /// When the next step of the chore is due, on the clock.
    due: Duration,
    /// Who asked for the rotation that is under way.
    asked: Vec<oneshot::Sender<Result<Rotated, String>>>,
    /// What the database took when it was last moved by this process, bytes.
    smallest: u64,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let job = match self.rest() {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(rest) => jobs.recv_timeout(rest),
            };
            let done = match job {
                Ok(job) => self.work(job),
                // Between jobs, one small step at a time.
                Err(RecvTimeoutError::Timeout) if self.pruning => self.prune(),
                Err(RecvTimeoutError::Timeout) => self.chore(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(why) = done {
                self.mailbox.fail(why.to_string());
                return;
            }
        }
    }

    /// How long to wait for a job before there is something else to do; `None`: there is nothing.
    fn rest(&self) -> Option<Duration> {
        match self.chore {
            _ if self.pruning => Some(Duration::ZERO),
            Chore::None => None,
            _ => Some(self.due.saturating_sub(self.shared.clock.elapsed())),
        }
    }

    fn work(&mut self, job: Job) -> Result<(), Failure> {
        match job {
            Job::Take => {
                let moment = self.waiting.lock().expect("no holder of this lock panics").take();
                moment.map_or(Ok(()), |moment| self.take(moment))
            }
            Job::Compare(manifest) => self.compare(&manifest),
            Job::Sweep => {
                self.pruning = true;
                Ok(())
            }
            Job::Rotate(done) => {
                self.asked.push(done);
                if matches!(self.chore, Chore::Rotate(_)) { Ok(()) } else { self.rotate() }
            }
            Job::Work(SnapshotJob::Stage(manifest)) => {
                let missing = match self.shared.store.stage(&manifest) {
                    Ok(ranges) => ranges.into_iter().flatten().collect(),
                    // A complete image of that mark, and another one: told when its manifest is applied.
                    Err(SnapshotError::Other { index }) => return Err(Failure::Diverged { index }),
                    Err(why) => return Err(why.into()),
                };
                let index = manifest.index;
                self.fetching = Some(manifest);
                self.tell(Input::SnapshotStaged { index, missing })
            }
            Job::Work(SnapshotJob::Store { index, chunk, bytes }) => {
                let Some(manifest) = self.fetching.as_ref().filter(|m| m.index == index) else { return Ok(()) };
                match self.shared.store.put_chunk(manifest, chunk, &bytes) {
                    Ok(()) => self.tell(Input::ChunkStored { index, chunk }),
                    // An image of this node's own took its place: the log is beyond this one, and the core lets go of it.
                    Err(SnapshotError::NotStaged { .. }) => Ok(()),
                    Err(why) => Err(why.into()),
                }
            }
            Job::Work(SnapshotJob::Complete(manifest)) => self.complete(&manifest),
            Job::Work(SnapshotJob::Abandon(index)) => {
                self.fetching.take_if(|m| m.index == index);
                Ok(())
            }
            Job::Work(SnapshotJob::Compact(upto)) => {
                self.compact = self.compact.max(upto);
                self.pruning = true;
                Ok(())
            }
        }
    }

    fn tell(&self, input: Input) -> Result<(), Failure> {
        self.mailbox.put(input);
        Ok(())
    }

    fn take(&mut self, moment: Moment) -> Result<(), Failure> {
        let index = moment.index();
        // What is being fetched is further than this, and the log will begin after that.
        if self.fetching.as_ref().is_some_and(|f| f.index > index) {
            return Ok(());
        }
        let store = &self.shared.store;
        let image = moment.image(store)?;
        let bytes = image.encode();
        let manifest = image.manifest(&bytes);
        drop(image);
        store.stage(&manifest)?;
        for (number, chunk) in (0..).zip(chunks(&bytes)) {
            store.put_chunk(&manifest, number, chunk)?;
        }
        store.complete(&manifest)?;
        tracing::info!(%index, bytes = manifest.bytes, "snapshot taken");
        // The quorum may have been faster.
        let certified = self.shared.replica().newest_manifest().cloned();
        if let Some(certified) = certified {
            self.compare(&certified)?;
        }
        self.tell(Input::SnapshotTaken(Arc::new(manifest)))
    }

    fn compare(&self, certified: &SnapshotManifest) -> Result<(), Failure> {
        let index = certified.index;
        let ours = self.shared.store.snapshots().into_iter().find(|m| m.index == index);
        if ours.is_some_and(|ours| ours != *certified) { Err(Failure::Diverged { index }) } else { Ok(()) }
    }

    fn complete(&mut self, manifest: &SnapshotManifest) -> Result<(), Failure> {
        let index = manifest.index;
        let image = match self.shared.store.complete(manifest) {
            Ok(()) => read_image(&self.shared.store, manifest),
            Err(SnapshotError::Durability(why)) => return Err(SnapshotError::from(why).into()),
            Err(why) => {
                tracing::warn!(%index, %why, "a fetched snapshot is fetched again");
                None
            }
        };
        self.fetching = None;
        self.tell(Input::SnapshotReady { index, base: image.map(|image| Arc::new(image.base())) })
    }

    fn prune(&mut self) -> Result<(), Failure> {
        let store = &self.shared.store;
        let step = store.compact(self.compact)?;
        if !step.more {
            self.pruning = false;
            if let Some(newest) = store.snapshots().last() {
                store.drop_snapshots_below(newest.index)?;
            }
            self.shared.replica_mut().forget_outcomes(step.base);
            tracing::info!(base = %step.base, "entries pruned");
            self.move_if_worth_it()?;
        }
        Ok(())
    }

    /// Moves the database if enough of it is dead. That is known once it was weighed; a database that was moved before
    /// is given time to grow, whatever its weight.
    fn move_if_worth_it(&mut self) -> Result<(), Failure> {
        let Some(percent) = self.settings.dead_percent else { return Ok(()) };
        let space = self.shared.store.space()?;
        if !matches!(self.chore, Chore::None) || space.file < WORTH_MOVING.max(self.smallest.saturating_mul(2)) {
            return Ok(());
        }
        match space.live {
            None => self.chore = Chore::Weigh(self.shared.store.weigh()),
            Some(live) if space.file.saturating_sub(live) / 100 >= space.file / 10_000 * percent => self.rotate()?,
            Some(_) => {}
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), Failure> {
        self.chore = Chore::None;
        match self.shared.store.rotate() {
            Ok(rotation) => {
                tracing::info!("the database moves to a fresh one");
                self.chore = Chore::Rotate(Box::new(rotation));
                Ok(())
            }
            Err(why) => self.rotated(Err(why)),
        }
    }

    fn chore(&mut self) -> Result<(), Failure> {
        let clock = self.shared.clock;
        let moved = match &mut self.chore {
            Chore::None => return Ok(()),
            Chore::Weigh(scale) => {
                if !scale.step()? {
                    self.chore = Chore::None;
                    return self.move_if_worth_it();
                }
                WEIGHED
            }
            Chore::Rotate(rotation) => match rotation.step(|| clock.elapsed()) {
                Ok(RotationStep::Moved(bytes)) => {
                    let moved = Some(rotation.moved());
                    self.shared.set_moving(Moving { moved, ..self.shared.moving() });
                    bytes
                }
                Ok(RotationStep::Waiting) => {
                    self.due = clock.elapsed() + LOOK_AGAIN;
                    return Ok(());
                }
                Ok(RotationStep::Done(rotated)) => return self.rotated(Ok(rotated)),
                Err(why) => return self.rotated(Err(why)),
            },
        };
        let pause = moved.saturating_mul(1_000_000) / self.settings.bytes_per_s.max(1);
        self.due = clock.elapsed() + Duration::from_micros(pause);
        Ok(())
    }

    /// A rotation has ended. That it was given up is no reason to stop; that nobody knows how it ended is one.
    fn rotated(&mut self, ended: Result<Rotated, RotateError>) -> Result<(), Failure> {
        self.chore = Chore::None;
        let before = self.shared.moving().last;
        let ended = match ended {
            Ok(rotated) => {
                let Rotated { before, after, pause, .. } = rotated;
                tracing::info!(before, after, pause_us = pause.as_micros(), "the database has moved; bytes");
                self.smallest = after;
                Ok(rotated)
            }
            Err(RotateError::Durability(why)) => return Err(why.into()),
            Err(why) => {
                tracing::warn!(%why, "the database does not move to a fresh one");
                // Not again by itself before it has grown by half: what hindered it is likely still there.
                let file = self.shared.store.space().map_or(0, |space| space.file);
                self.smallest = self.smallest.max(file / 4 * 3);
                Err(why.to_string())
            }
        };
        self.shared.telemetry.rotation(ended.as_ref().ok().map(|rotated| rotated.pause.as_secs_f64()));
        self.shared.set_moving(Moving { moved: None, last: ended.as_ref().ok().copied().or(before) });
        for asked in std::mem::take(&mut self.asked) {
            // A caller that gave up is no news.
            let _gone = asked.send(ended.clone());
        }
        Ok(())
    }
}

/// The image of a complete snapshot, checked; `None` when it is not what its manifest says.
pub(super) fn read_image(store: &Store, manifest: &SnapshotManifest) -> Option<Image> {
    let mut bytes = Vec::new();
    let read = store.snapshot_reader(manifest.index)?.read_to_end(&mut bytes);
    let image = read.map_err(|e| e.to_string()).and_then(|_| Image::decode(&bytes).map_err(|e| e.to_string()));
    let checked = image.and_then(|image| image.check(manifest).map(|()| image).map_err(|e: ImageError| e.to_string()));
    checked.inspect_err(|why| tracing::error!(index = %manifest.index, %why, "a snapshot does not read")).ok()
}
