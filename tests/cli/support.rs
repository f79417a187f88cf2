//! Runs the built program.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// How long any line may take before a test fails: far beyond what a loaded machine needs.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Exit code 1 and one line `error: …` that says all of this.
    #[track_caller]
    pub(crate) fn fails_with(self, parts: &[&str]) -> Self {
        self.fails_as(1, parts)
    }

    #[track_caller]
    pub(crate) fn fails_as(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        let error = self.stderr.lines().find(|l| l.starts_with("error: ")).unwrap_or_default().to_owned();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {}", self.stderr);
        }
        self
    }
}

/// What a running program says, line by line; it is killed when this is dropped.
pub(crate) struct Lines {
    pub(crate) child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Lines {
    /// Reads both outputs of a child, to their ends.
    pub(crate) fn of(mut child: Child) -> Self {
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, stdout: lines(stdout), stderr: lines(stderr) }
    }

    /// The next line of stdout.
    #[track_caller]
    pub(crate) fn next(&mut self) -> String {
        self.stdout.recv_timeout(DEADLINE).unwrap_or_else(|why| {
            panic!("{why} for a line; stderr: {:?}", self.stderr.try_iter().collect::<Vec<_>>());
        })
    }

    /// Waits for this line of stderr.
    #[track_caller]
    pub(crate) fn says(&mut self, line: &str) {
        let mut said = Vec::new();
        while said.last().is_none_or(|last| last != line) {
            match self.stderr.recv_timeout(DEADLINE) {
                Ok(next) => said.push(next),
                Err(why) => panic!("{why} for {line:?} after {said:?}"),
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        // Read to the end even when nobody listens, or the program would end because nobody reads what it prints.
        BufReader::new(output).lines().map_while(Result::ok).for_each(|line| drop(tell.send(line)));
    });
    told
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concordat"));
    // What the developer's shell says about a cluster must not reach the tests.
    command.env_remove("CONCORDAT_NODES").env_remove("RUST_LOG");
    command
}

/// Runs the program in `dir`.
pub(crate) fn run(dir: &Path, arguments: &[&str]) -> Ran {
    Ran::of(&program().current_dir(dir).args(arguments).output().unwrap())
}

pub(crate) fn init(dir: &Path, name: &str, port: u16) -> PathBuf {
    run(dir, &["init", "--data", name, "--address", &format!("127.0.0.1:{port}")]).succeeds();
    dir.join(name).join("member.json")
}

/// Three members and their genesis.json.
pub(crate) fn three(dir: &Path) {
    for (name, port) in [("a", 7001), ("b", 7002), ("c", 7003)] {
        init(dir, name, port);
    }
    genesis(dir, "genesis.json", &["a", "b", "c"]).succeeds();
}

pub(crate) fn genesis(dir: &Path, out: &str, members: &[&str]) -> Ran {
    let files: Vec<String> = members.iter().map(|m| format!("{m}/member.json")).collect();
    let mut arguments = vec!["genesis", "--name", "test", "--quorum", "majority", "--out", out, "--member"];
    arguments.extend(files.iter().map(String::as_str));
    run(dir, &arguments)
}
