//! What is remembered of an import: the deadline of its requests.
//!
//! A cluster recognises a request until its deadline, and a retry of it only by the deadline of the first try: sent with
//! a later one it would, after the first has passed, be another request and applied again. So the deadline of an import
//! is chosen once, put on the disk before the first line is sent, and found there by every later run.

use super::{Failure, output};
use crate::ids::Digest;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Largest file of this kind, in bytes: some thousands of imports.
const MAX_STATE: u64 = 1024 * 1024;
/// Added to the name of an imported file.
const SUFFIX: &str = ".concordat";

/// Which requests: those of one file's contents, made under one client identity, to one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Import {
    pub(super) genesis_id: Digest,
    pub(super) client: String,
    /// The file's digest, with which every request id begins.
    pub(super) file: String,
}

/// One line of the state file.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    #[serde(flatten)]
    import: Import,
    deadline_ms: u64,
}

/// Where an imported file's deadlines are kept unless something else is said: beside it.
pub(super) fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// The deadline of an import: the one in the state file, or `fresh`, which is then in it, durably.
pub(super) fn deadline(state: &Path, import: &Import, fresh: u64) -> Result<u64, Failure> {
    let write = |e| {
        Failure::file("write", state, e)
            .hint("it keeps the import's deadline, by which a later run is recognised; name another place with --state")
    };
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(state).map_err(write)?;
    // Two runs at once must agree on one deadline. The lock ends with the file.
    file.lock().map_err(write)?;
    let mut bytes = Vec::new();
    (&file).take(MAX_STATE + 1).read_to_end(&mut bytes).map_err(|e| Failure::file("read", state, e))?;
    // A line without its end was being written when its run died: nothing has been sent under it.
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let text = std::str::from_utf8(&bytes[..whole]).map_err(|e| Failure::file("read", state, e))?;
    for (number, line) in (1..).zip(text.lines()) {
        let remembered: Remembered = serde_json::from_str(line).map_err(|e| {
            Failure::file("read", state, format!("line {number}: {e}"))
                .hint("name another file with --state, or this one is something else or damaged")
        })?;
        if remembered.import == *import {
            return Ok(remembered.deadline_ms);
        }
    }
    if bytes.len() as u64 > MAX_STATE {
        return Err(Failure::file("read", state, format!("it has more than {MAX_STATE} bytes")));
    }
    let line = output::to_json(&Remembered { import: import.clone(), deadline_ms: fresh })? + "\n";
    file.set_len(whole as u64).map_err(write)?;
    file.seek(SeekFrom::End(0)).map_err(write)?;
    file.write_all(line.as_bytes()).map_err(write)?;
    file.sync_all().map_err(write)?;
    let directory = state.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(write)?;
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(file: &str) -> Import {
        Import { genesis_id: Digest([7; 32]), client: "c".into(), file: file.into() }
    }

    #[test]
    fn a_deadline_is_chosen_once_for_each_import() {
        let dir = tempfile::tempdir().unwrap();
        let state = beside(&dir.path().join("updates.jsonl"));
        assert!(state.ends_with("updates.jsonl.concordat"));
        let ask = |import: &Import, fresh| deadline(&state, import, fresh).unwrap();
        assert_eq!(ask(&import("a"), 10), 10);
        assert_eq!(ask(&import("b"), 20), 20);
        assert_eq!(ask(&import("a"), 30), 10, "a later run keeps the first run's");
        let elsewhere = Import { genesis_id: Digest([8; 32]), ..import("a") };
        let as_another = Import { client: "d".into(), ..import("a") };
        assert_eq!((ask(&elsewhere, 40), ask(&as_another, 50)), (40, 50), "other requests");
        assert_eq!(ask(&import("b"), 60), 20);
    }

    #[test]
    fn a_torn_line_is_forgotten_and_a_foreign_file_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert_eq!(deadline(&state, &import("a"), 10).unwrap(), 10);
        let torn = std::fs::read_to_string(&state).unwrap() + "{\"genesis_id\":";
        std::fs::write(&state, torn).unwrap();
        assert_eq!(deadline(&state, &import("b"), 20).unwrap(), 20);
        assert_eq!(deadline(&state, &import("a"), 30).unwrap(), 10);
        assert_eq!(deadline(&state, &import("b"), 30).unwrap(), 20);

        std::fs::write(&state, "something else\n").unwrap();
        assert!(deadline(&state, &import("a"), 10).unwrap_err().message.contains("line 1"));
        assert_eq!(std::fs::read(&state).unwrap(), b"something else\n", "and left as it was");
        let unwritable = dir.path().join("missing").join("state");
        assert!(deadline(&unwritable, &import("a"), 10).unwrap_err().hint.unwrap().contains("--state"));
    }

    #[test]
    fn runs_at_once_agree_on_one_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let runs: Vec<_> = (0..8u64)
            .map(|n| {
                let state = state.clone();
                std::thread::spawn(move || deadline(&state, &import("a"), n).unwrap())
            })
            .collect();
        let deadlines: Vec<u64> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        assert!(deadlines.windows(2).all(|pair| pair[0] == pair[1]), "{deadlines:?}");
    }
}
