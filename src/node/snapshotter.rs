//! The thread that works on images: takes them at marks, fills and checks those that are fetched, and lets entries go that
//! a certified one stands for. Nothing of it delays the owner, the committer or the state machine.

use super::epochs::Outline;
use super::executor::SnapshotJob;
use super::image::{Image, ImageError, chunks};
use super::mailbox::Mailbox;
use super::queries::QueryError;
use super::shared::Shared;
use crate::certificate::{Edge, Entry, SnapshotManifest};
use crate::core::Input;
use crate::ids::{LogIndex, Term};
use crate::registry::State;
use crate::storage::{CompactError, SnapshotError, Store};
use std::io::Read as _;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

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
    #[error(
        "this node's state at the mark {index} is another than a quorum's, which is certified: its replica has diverged; do not start it again: keep its data for the search, and bring the member back with a fresh store, as after a lost disk (ops/README.md)"
    )]
    Diverged { index: LogIndex },
}

enum Job {
    /// The newest mark's moment waits.
    Take,
    Work(SnapshotJob),
    /// A quorum's, certified.
    Compare(SnapshotManifest),
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

    fn put(&self, job: Job) {
        if self.queue.send(job).is_err() {
            tracing::error!("the snapshot thread is gone");
        }
    }
}

pub(super) struct Snapshotter(JoinHandle<()>);

impl Snapshotter {
    /// Starts it. It ends when all ends of its queue are gone.
    pub(super) fn start(shared: Arc<Shared>, mailbox: Arc<Mailbox>) -> std::io::Result<(Self, Jobs)> {
        let (queue, jobs) = channel();
        let moment = Arc::new(Mutex::new(None));
        let waiting = moment.clone();
        let thread = std::thread::Builder::new().name("snapshots".into()).spawn(move || {
            let mailbox_of = mailbox.clone();
            let worker = Worker { shared, mailbox: mailbox_of, waiting, fetching: None, compact: LogIndex::ZERO };
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
    fetching: Option<Arc<SnapshotManifest>>,
    /// Entries up to here are to go.
    compact: LogIndex,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let idle = self.compact <= self.shared.store.base();
            let job = match jobs.try_recv() {
                Ok(job) => Some(job),
                Err(TryRecvError::Empty) if idle => jobs.recv().ok(),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            };
            let done = match job {
                Some(job) => self.work(job),
                None if idle => return,
                // Between jobs, one small step at a time.
                None => self.prune(),
            };
            if let Err(why) = done {
                self.mailbox.fail(why.to_string());
                return;
            }
        }
    }

    fn work(&mut self, job: Job) -> Result<(), Failure> {
        match job {
            Job::Take => {
                let moment = self.waiting.lock().expect("no holder of this lock panics").take();
                moment.map_or(Ok(()), |moment| self.take(moment))
            }
            Job::Compare(manifest) => self.compare(&manifest),
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
            self.compact = store.base();
            if let Some(newest) = store.snapshots().last() {
                store.drop_snapshots_below(newest.index)?;
            }
            self.shared.replica_mut().forget_outcomes(step.base);
            tracing::info!(base = %step.base, "entries pruned");
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
