//! Processes that die at any call that changes a file, and file systems that are shut down there, over and over.

use crate::history::History;
use crate::model::{DID, Dice};
use crate::{Recording, number};
use concordat::ids::LogIndex;
use concordat::storage::Store;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SIGKILL: i32 = 9;
/// Kills of one store before the next one is made: its log grows.
const KILLS_OF_A_STORE: u64 = 12;
/// Calls of a process at most before it dies. Opening takes some tens, a step of the writer ten and more.
const CALLS: usize = 800;

/// The notes, outside the file system under test: what a process told, it told.
fn notes_of(recording: &Recording, dir: &Path) -> PathBuf {
    let notes = recording.dir().with_file_name("notes");
    fs::write(&notes, "").unwrap();
    std::os::unix::fs::symlink(&notes, dir.join("notes")).unwrap();
    notes
}

/// When to die: sometimes early, so that creating, opening and recovering are hit as well.
fn moment(dice: &mut Dice) -> String {
    let most = [40, 200, CALLS, CALLS][dice.below(4)];
    (1 + dice.below(most)).to_string()
}

/// Runs the writer until it dies at some call; says whether it did.
fn run_and_die(recording: &Recording, dir: &Path, dice: &mut Dice, settings: &[(&str, &str)]) {
    let (seed, at) = (dice.below(1 << 20).to_string(), moment(dice));
    let dir = dir.to_str().unwrap();
    let own = [
        ("CRASH_SEED", seed.as_str()),
        ("KILL_AT", &at),
        ("RECORD_LOG", "/dev/null"),
        ("RECORD_DIR", dir),
        ("CRASH_DIR", dir),
        ("CRASH_STEPS", "100000"),
        ("CRASH_COMPACT", "1"),
    ];
    let ended = recording.ended(&[&own, settings].concat());
    // Any other end would be a fault of its own, or one of shutting the file system down.
    assert_eq!(ended.signal(), Some(SIGKILL), "it dies as planned");
}

fn judged(notes: &Path, store: &Path) -> Result<(), String> {
    History::read(&fs::read_to_string(notes).unwrap()).judge(store)
}

#[test]
fn nothing_acknowledged_is_lost_by_processes_killed_at_any_call() {
    let kills = number("CRASH_KILLS").unwrap_or(30);
    let mut dice = Dice(number("CRASH_SEED").unwrap_or(1));
    let mut left = kills;
    while left > 0 {
        let recording = Recording::new();
        let dir = recording.dir();
        let notes = notes_of(&recording, &dir);
        for n in 0..left.min(KILLS_OF_A_STORE) {
            run_and_die(&recording, &dir, &mut dice, &[]);
            if let Err(what) = judged(&notes, &dir.join("store")) {
                let kept = recording.keep();
                panic!("kill {n} of {left} left: {what}; kept in {}", kept.display());
            }
        }
        left -= left.min(KILLS_OF_A_STORE);
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// An ext4 file system in a file; unmounted when dropped.
struct Mounted {
    image: PathBuf,
    at: PathBuf,
}

impl Mounted {
    fn new(dir: &Path) -> Option<Self> {
        let (image, at) = (dir.join("ext4"), dir.join("mounted"));
        fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let mounted = Self { image, at };
        let made = succeeds(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&mounted.image));
        (made && mounted.mount()).then_some(mounted)
    }

    fn mount(&self) -> bool {
        succeeds(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    fn unmount(&self) -> bool {
        // Processes that died may hold it for a moment.
        (0..200).any(|_| succeeds(Command::new("umount").arg(&self.at)))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Not mounted any more, or gone with this machine's next start.
        let _unmounted = self.unmount();
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_a_real_file_system_is_shut_down() {
    let times = number("CRASH_SHUTDOWNS").unwrap_or(4);
    let mut dice = Dice(number("CRASH_SEED").unwrap_or(2));
    let mut left = times;
    while left > 0 {
        let recording = Recording::new();
        let Some(mounted) = Mounted::new(recording.dir().parent().unwrap()) else {
            println!("mounting takes root and a loop device: no file system was shut down");
            return;
        };
        let notes = notes_of(&recording, &mounted.at);
        // What the test itself made is on the disk.
        assert!(succeeds(Command::new("sync").arg("-f").arg(&mounted.at)));
        for n in 0..left.min(10) {
            run_and_die(&recording, &mounted.at, &mut dice, &[("SHUTDOWN", "1")]);
            assert!(mounted.unmount() && mounted.mount(), "it mounts again");
            judged(&notes, &mounted.at.join("store"))
                .unwrap_or_else(|what| panic!("shutdown {n} of {left} left: {what}"));
        }
        left -= left.min(10);
    }
}

/// The golden store of a version, unpacked.
fn golden(version: u16, into: &Path) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/store-v{version}.tar.gz"));
    assert!(succeeds(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into)));
}

#[test]
fn a_migration_killed_at_any_call_goes_on() {
    for version in [1, 2] {
        let mut ended = false;
        // Every call at first, then with growing gaps: opening the database is most of them.
        for at in (1..).map(|n: u64| n + n * n / 8) {
            let recording = Recording::new();
            let dir = recording.dir();
            golden(version, &dir);
            let settings = [("CRASH_MIGRATE", "1"), ("KILL_AT", &at.to_string()), ("RECORD_LOG", "/dev/null")];
            ended = recording.run(&settings);
            let (store, found) = Store::open(&dir.join("store")).unwrap_or_else(|e| panic!("killed at call {at}: {e}"));
            assert_eq!((found.did, found.last_index), (DID, LogIndex(600)), "killed at call {at}");
            assert!(store.header(LogIndex(1)).unwrap().is_some() && found.restored.certificate.is_some());
            if ended {
                break;
            }
        }
        assert!(ended);
    }
}
