//! Power loss, failing fsync and full disks: see README.md in this directory.

mod history;
mod model;
mod storms;
mod trace;
mod writer;

use concordat::storage::Store;
use history::History;
use model::Dice;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use tempfile::TempDir;
use trace::{Names, Op, Unsynced};
use writer::Task;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Not a test of its own: the other tests run this binary again, with this name and an environment.
#[test]
fn recorded_process() {
    let Some(dir) = std::env::var_os("CRASH_DIR") else { return };
    if std::env::var_os("CRASH_MIGRATE").is_some() {
        return drop(Store::open(&Path::new(&dir).join("store")).expect("a store to migrate"));
    }
    writer::run(&Task {
        dir: dir.into(),
        seed: number("CRASH_SEED").unwrap(),
        steps: number("CRASH_STEPS").unwrap(),
        abort: number("CRASH_ABORT") == Some(1),
        single: number("CRASH_SINGLE") == Some(1),
        compact: number("CRASH_COMPACT") == Some(1),
        once: number("CRASH_ONCE") == Some(1),
    });
}

/// A directory under record, on whatever disk the temporary directory is on.
struct Recording {
    temp: TempDir,
    library: PathBuf,
}

impl Recording {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("recorded")).unwrap();
        Self { library: writer::recorder(temp.path()), temp }
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("recorded").canonicalize().unwrap()
    }

    /// Runs the writer under record; says whether it ended well.
    fn run(&self, settings: &[(&str, &str)]) -> bool {
        self.ended(settings).success()
    }

    fn ended(&self, settings: &[(&str, &str)]) -> ExitStatus {
        let mut command = self.writer(&[]);
        command.env("LD_PRELOAD", &self.library).env("RECORD_DIR", self.dir());
        command.env("RECORD_LOG", self.temp.path().join("log")).envs(settings.iter().copied());
        command.status().unwrap()
    }

    /// Leaves the directory where it is, to be looked at.
    fn keep(self) -> PathBuf {
        self.temp.keep()
    }

    /// The writer, as yet without a record.
    fn writer(&self, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "recorded_process", "--test-threads=1"]).env("CRASH_DIR", self.dir());
        command.envs(settings.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn ops(&self) -> Vec<Op> {
        trace::read(&self.temp.path().join("log"))
    }

    fn notes(&self) -> String {
        fs::read_to_string(self.dir().join("notes")).unwrap()
    }
}

/// The notes written up to an operation.
fn notes(ops: &[Op]) -> String {
    let written = ops.iter().filter(|op| op.kind == "W" && op.path == "notes");
    written.map(|op| std::str::from_utf8(&op.data).unwrap()).collect()
}

/// Builds `states` crash states out of a recording and opens each; returns what went wrong.
fn crash_states(recording: &Recording, states: u64, dice: &mut Dice) -> Vec<String> {
    let ops = recording.ops();
    let answers: Vec<usize> =
        (0..ops.len()).filter(|&t| ops[t].path == "notes" && ops[t].data.first() == Some(&b'A')).collect();
    assert!(answers.len() > 20, "{} answers in {} operations", answers.len(), ops.len());
    let mut wrong = Vec::new();
    for n in 0..states {
        // A third of the crashes right after an answer: nothing has been written since that could help.
        let end = if dice.below(3) == 0 { answers[dice.below(answers.len())] + 1 } else { 1 + dice.below(ops.len()) };
        let names = [Names::Posix, Names::Journal][dice.below(2)];
        let unsynced =
            [Unsynced::Nothing, Unsynced::SomePages, Unsynced::SomePages, Unsynced::Everything][dice.below(4)];
        let target = recording.temp.path().join("crashed");
        trace::crash(&ops[..end], names, unsynced, dice, &target);
        let history = History::read(&notes(&ops[..end]));
        if let Err(what) = history.judge(&target.join("store")) {
            wrong.push(format!("state {n}: after operation {end} of {}, {names:?}, {unsynced:?}: {what}", ops.len()));
        }
        fs::remove_dir_all(&target).unwrap();
    }
    wrong
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails() {
    power_failures(60, &[]);
}

#[test]
fn nothing_is_lost_when_the_power_fails_amid_snapshots_installs_compaction_and_rotation() {
    power_failures(60, &[("CRASH_COMPACT", "1")]);
}

/// The processes are killed wherever they are when they have given some number of answers.
#[test]
fn nothing_is_lost_when_processes_are_killed_amid_snapshots_installs_compaction_and_rotation() {
    let kills = number("CRASH_KILLS").unwrap_or(8);
    let seed = number("CRASH_SEED").unwrap_or(1);
    let mut dice = Dice(seed);
    let recording = Recording::new();
    let mut rotations = 0;
    for kill in 0..kills {
        let before = fs::read(recording.dir().join("notes")).unwrap_or_default().len();
        let (seed, lines) = ((seed * 1_000 + kill).to_string(), 4 + dice.below(120));
        let settings = [("CRASH_SEED", &*seed), ("CRASH_STEPS", "1000000"), ("CRASH_COMPACT", "1")];
        let mut child = recording.writer(&settings).spawn().unwrap();
        let told = || fs::read(recording.dir().join("notes")).unwrap_or_default().split_off(before);
        while told().iter().filter(|b| **b == b'\n').count() < lines {
            assert!(child.try_wait().unwrap().is_none(), "it ends by itself: {}", recording.notes());
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        rotations += String::from_utf8(told()).unwrap().matches("R done").count();
        let history = History::read(&recording.notes());
        history.judge(&recording.dir().join("store")).unwrap_or_else(|what| panic!("kill {kill}: {what}"));
    }
    println!("{kills} kills, {rotations} rotations");
}

fn power_failures(states: u64, settings: &[(&str, &str)]) {
    let states = number("CRASH_STATES").unwrap_or(states);
    let seed = number("CRASH_SEED").unwrap_or(1);
    let mut wrong = Vec::new();
    // A run from creation to a clean end; and one that is killed twice, so that a process reads and vouches for what
    // another has written but not fsynced.
    let steps = number("CRASH_STEPS").unwrap_or(120).to_string();
    let with = |own: &[(&'static str, &str)], recording: &Recording| {
        recording.run(&[own, &[("CRASH_STEPS", &steps)], settings].concat())
    };
    let calm = Recording::new();
    assert!(with(&[("CRASH_SEED", &seed.to_string())], &calm));
    wrong.extend(crash_states(&calm, states / 2, &mut Dice(seed)));
    let killed = Recording::new();
    for round in 1..=3 {
        let seed = (seed * 10 + round).to_string();
        let ended = with(&[("CRASH_SEED", &seed), ("CRASH_ABORT", "1")], &killed);
        assert!(!ended, "it aborts");
    }
    wrong.extend(crash_states(&killed, states - states / 2, &mut Dice(seed + 1)));
    assert!(wrong.is_empty(), "{} of {states} crash states:\n{}", wrong.len(), wrong.join("\n"));
}

/// Where the bytes of an entry were written, and when an fsync of that file that began later had returned.
fn written_and_synced(ops: &[Op], needle: &[u8]) -> Option<(usize, usize)> {
    let holds = |op: &Op| op.kind == "W" && op.path == "store/db" && op.data.windows(needle.len()).any(|w| w == needle);
    let written = ops.iter().position(holds)?;
    let begun = written + ops[written..].iter().position(|op| op.kind == "SB" && op.path == "store/db")?;
    let synced = begun + ops[begun..].iter().position(|op| op.kind == "S" && op.path == "store/db")?;
    Some((written, synced))
}

#[test]
fn nothing_is_acknowledged_before_its_fsync() {
    let recording = Recording::new();
    assert!(recording.run(&[("CRASH_SEED", "5"), ("CRASH_STEPS", "60"), ("CRASH_SINGLE", "1")]));
    let ops = recording.ops();
    let mut checked = 0;
    let mut log = Vec::new();
    for (t, op) in
        ops.iter().enumerate().filter(|(_, op)| op.kind == "W" && op.path == "notes" && op.data.first() == Some(&b'S'))
    {
        let step = History::step(std::str::from_utf8(&op.data).unwrap());
        let write = step.write(&mut log);
        let Some(last) = write.entries.last() else { continue };
        let answer = format!("A {}\n", step.seq);
        let answered = t + ops[t..].iter().position(|op| op.path == "notes" && op.data == answer.as_bytes()).unwrap();
        let found = written_and_synced(&ops[t..], &last.body.salt);
        let (written, synced) = found.unwrap_or_else(|| panic!("step {} was written and fsynced", step.seq));
        assert!(
            t + synced < answered,
            "step {}: written at {}, fsynced at {}, acknowledged at {answered}",
            step.seq,
            t + written,
            t + synced
        );
        checked += 1;
    }
    assert!(checked > 20, "{checked} steps with entries");
}

#[test]
fn a_vote_is_in_the_watermark_before_it_is_acknowledged() {
    let recording = Recording::new();
    assert!(recording.run(&[("CRASH_SEED", "6"), ("CRASH_STEPS", "60"), ("CRASH_SINGLE", "1")]));
    let ops = recording.ops();
    let mut checked = 0;
    for (t, op) in
        ops.iter().enumerate().filter(|(_, op)| op.kind == "W" && op.path == "notes" && op.data.first() == Some(&b'S'))
    {
        let step = History::step(std::str::from_utf8(&op.data).unwrap());
        if step.candidate == 0 {
            continue;
        }
        let answer = format!("A {}\n", step.seq);
        let until = t + ops[t..].iter().position(|op| op.path == "notes" && op.data == answer.as_bytes()).unwrap();
        // In this order: the store fsynced, the new watermark written and fsynced, renamed, its directory fsynced.
        let mut wanted = [
            ("S", "store/db"),
            ("W", "store/watermark.next"),
            ("S", "store/watermark.next"),
            ("MV", "store/watermark.next"),
            ("S", "store"),
        ]
        .into_iter()
        .peekable();
        for op in &ops[t..until] {
            if wanted.peek() == Some(&(op.kind.as_str(), op.path.as_str())) {
                wanted.next();
            }
        }
        assert_eq!(wanted.next(), None, "step {}", step.seq);
        checked += 1;
    }
    assert!(checked > 5, "{checked} votes");
}

#[test]
fn what_a_killed_process_left_unsynced_is_made_durable_before_it_is_vouched_for() {
    let recording = Recording::new();
    // The first process ends with writes that the operating system has and the disk has not.
    recording.run(&[("CRASH_SEED", "7"), ("CRASH_STEPS", "200"), ("FAIL_SYNC_FROM", "25"), ("CRASH_ABORT", "1")]);
    let first = recording.ops().len();
    recording.run(&[("CRASH_SEED", "11"), ("CRASH_STEPS", "1")]);
    let ops = recording.ops();
    let opened = first + ops[first..].iter().position(|op| op.data.starts_with(b"O ")).unwrap() + 1;
    // The database fsyncs on some ways to open; the store relies on its own.
    let own = ops[first..opened].iter().any(|op| op.path == "store/db" && op.kind == "SB" && op.second == "data");
    assert!(own, "an fdatasync before the store says what it found");
    let target = recording.temp.path().join("crashed");
    trace::crash(&ops[..opened], Names::Journal, Unsynced::Nothing, &mut Dice(1), &target);
    History::read(&notes(&ops[..opened])).judge(&target.join("store")).unwrap();
}

/// How many fdatasyncs of the data file begin after the first failed. (The database ends with an fsync of its own when
/// it is dropped, on which nothing rests.)
fn fdatasyncs_after_failure(ops: &[Op]) -> usize {
    let failed = ops.iter().position(|op| op.kind == "F").expect("an fdatasync failed");
    ops[failed..].iter().filter(|op| op.path == "store/db" && op.kind == "SB" && op.second == "data").count()
}

/// A rotation that fails is given up, and nothing else comes of it.
fn goes_on_without_rotation(settings: &[(&str, &str)], says: &str) {
    let recording = Recording::new();
    let common = [("CRASH_SEED", "12"), ("CRASH_STEPS", "150"), ("CRASH_COMPACT", "1"), ("FAIL_IN", "database-")];
    assert!(recording.run(&[&common, settings].concat()));
    let told = recording.notes();
    assert!(told.lines().any(|l| l.starts_with('R')), "{told}");
    for line in told.lines().filter(|l| l.starts_with('R')) {
        assert!(line.contains(says) && line.contains("the old one stays in force"), "{line}");
    }
    assert!(!told.lines().any(|l| l.starts_with('E') || l.starts_with('X')), "{told}");
    let left = fs::read_dir(recording.dir().join("store")).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|n| n.to_string_lossy().starts_with("database-")).collect();
    assert!(left.is_empty(), "{left:?}");
    opens_with_all_that_was_acknowledged(&recording);
}

#[test]
fn a_disk_too_small_for_a_fresh_database_stops_nothing_but_the_rotation() {
    goes_on_without_rotation(&[("FULL_AFTER", "100000")], "free disk space");
}

#[test]
fn a_failed_fsync_of_a_fresh_database_stops_nothing_but_the_rotation() {
    goes_on_without_rotation(&[("FAIL_SYNC_FROM", "7")], "check the disk");
}

#[test]
fn a_store_of_which_nobody_knows_which_database_is_in_force_takes_no_more_writes() {
    let recording = Recording::new();
    recording.run(&[
        ("CRASH_SEED", "12"),
        ("CRASH_STEPS", "400"),
        ("CRASH_COMPACT", "1"),
        ("FAIL_AFTER_RENAME", "current"),
    ]);
    let told = recording.notes();
    let after: Vec<&str> = told.lines().skip_while(|l| !l.starts_with('R')).collect();
    assert!(after[0].contains("fsync failed") && after[0].contains("remount"), "{after:?}");
    assert!(!after.iter().any(|l| l.starts_with('A')), "{after:?}");
    let moved = recording.ops().iter().any(|op| op.kind == "RM" && op.path == "store/db");
    assert!(!moved, "neither database is removed");
    opens_with_all_that_was_acknowledged(&recording);
}

/// Blocks in the log of a closed store, and what it begins after.
fn blocks_and_base(dir: &Path) -> (usize, u64) {
    let db = model::raw(dir);
    let base = db.open_tree("meta").unwrap().get("base").unwrap().unwrap();
    (db.open_tree("log").unwrap().len(), u64::from_be_bytes(base[1..9].try_into().unwrap()))
}

#[test]
fn a_base_rises_only_over_what_is_durable_and_blocks_go_only_below_a_durable_base() {
    let calm = Recording::new();
    calm.run(&[("CRASH_ONCE", "1"), ("CRASH_SEED", "1"), ("CRASH_STEPS", "1")]);
    let ops = calm.ops();
    let begin = ops.iter().position(|op| op.data == b"B\n").unwrap();
    let data_sync = |op: &&Op| op.path == "store/db" && op.kind == "SB" && op.second == "data";
    let before = ops[..begin].iter().filter(data_sync).count();
    let all = writer::once().len() / 10;
    let after = |failing: usize| {
        let recording = Recording::new();
        let failing = (before + failing).to_string();
        recording.run(&[("CRASH_ONCE", "1"), ("CRASH_SEED", "1"), ("CRASH_STEPS", "1"), ("FAIL_SYNC_FROM", &failing)]);
        assert!(recording.notes().ends_with("B\nE\n"), "{}", recording.notes());
        blocks_and_base(&recording.dir().join("store"))
    };
    // Each fsync of a compaction fails in its turn, and nothing is undone: what the database holds is how far it came.
    assert_eq!(after(1), (all, 0), "what headers, hashes and kept bodies stand for was not durable yet");
    assert_eq!(after(2), (all, 500), "the base was not durable yet");
    assert_eq!(after(3), (all - 50, 500), "and only then blocks went");
}

fn opens_with_all_that_was_acknowledged(recording: &Recording) {
    let history = History::read(&recording.notes());
    assert!(history.acknowledged > 0);
    history.judge(&recording.dir().join("store")).unwrap();
}

#[test]
fn a_failed_fsync_stops_the_committer_and_is_never_retried() {
    let recording = Recording::new();
    recording.run(&[("CRASH_SEED", "7"), ("CRASH_STEPS", "200"), ("FAIL_SYNC_FROM", "25")]);
    let told = recording.notes();
    let errors: Vec<&str> = told.lines().filter(|l| l.starts_with('E')).collect();
    assert_eq!(errors.len(), 1, "told once: {errors:?}");
    assert!(errors[0].contains("fsync failed") && errors[0].contains("remount"), "{}", errors[0]);
    assert_eq!(fdatasyncs_after_failure(&recording.ops()), 0);
    assert!(told.lines().skip_while(|l| !l.starts_with('E')).all(|l| !l.starts_with('A')), "answers after the failure");
    opens_with_all_that_was_acknowledged(&recording);
}

#[test]
fn a_full_disk_stops_the_committer_and_loses_nothing_acknowledged() {
    let recording = Recording::new();
    recording.run(&[("CRASH_SEED", "8"), ("CRASH_STEPS", "800"), ("FULL_AFTER", "20000000")]);
    let told = recording.notes();
    let errors: Vec<&str> = told.lines().filter(|l| l.starts_with('E')).collect();
    assert_eq!(errors.len(), 1, "told once: {errors:?}");
    assert!(errors[0].contains("free disk space"), "{}", errors[0]);
    opens_with_all_that_was_acknowledged(&recording);
}

#[test]
fn a_full_disk_at_open_is_no_damage() {
    let recording = Recording::new();
    recording.run(&[("CRASH_SEED", "8"), ("CRASH_STEPS", "1"), ("FULL_AFTER", "2500")]);
    let told = recording.notes();
    assert!(told.contains("E cannot open") && told.contains("free disk space"), "{told}");
    assert!(Store::open(&recording.dir().join("store")).is_ok(), "there is room again");
}

#[test]
fn the_judge_finds_what_is_lost() {
    let recording = Recording::new();
    assert!(recording.run(&[("CRASH_SEED", "9"), ("CRASH_STEPS", "40")]));
    let ops = recording.ops();
    let target = recording.temp.path().join("crashed");
    // As if no fsync had ever been: the store of a program that forgot it.
    let unsynced: Vec<Op> =
        ops.into_iter().filter(|op| !(matches!(op.kind.as_str(), "S") && op.path == "store/db")).collect();
    trace::crash(&unsynced, Names::Journal, Unsynced::Nothing, &mut Dice(1), &target);
    assert!(History::read(&notes(&unsynced)).judge(&target.join("store")).is_err());
}

/// A real full disk: a small tmpfs, in a mount namespace of the child's own.
#[test]
fn a_small_file_system_that_fills_up_is_survived() {
    let recording = Recording::new();
    let exe = std::env::current_exe().unwrap();
    let script = r#"mount -t tmpfs -o size=12m tmpfs "$CRASH_DIR" && "$1" --exact recorded_process --test-threads=1 >/dev/null 2>&1; cp -r "$CRASH_DIR" "$2""#;
    let kept = recording.temp.path().join("kept");
    let run = |flags: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sh", "-c", script, "sh"]).arg(&exe).arg(&kept);
        command.env("CRASH_DIR", recording.dir()).env("CRASH_SEED", "10").env("CRASH_STEPS", "3000");
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
            && kept.join("notes").exists()
    };
    // As root, or as root of a user namespace; where neither may mount, the recorder's full disk (above) is the test.
    if !run(&["--mount"]) && !run(&["--user", "--map-root-user", "--mount"]) {
        println!("this system lets nobody mount: the small file system was not tried");
        return;
    }
    full_disk_told(&kept);
}

fn full_disk_told(kept: &Path) {
    let told = fs::read_to_string(kept.join("notes")).unwrap();
    let errors: Vec<&str> = told.lines().filter(|l| l.starts_with('E')).collect();
    // The notes are on the same full disk: the error may not have fitted, an acknowledgement that is there counts.
    assert!(errors.iter().all(|e| e.contains("free disk space")), "{errors:?}");
    let history = History::read(&told);
    assert!(history.acknowledged > 0);
    history.judge(&kept.join("store")).unwrap();
    assert!(Store::open(&kept.join("store")).is_ok(), "there is room again");
}
