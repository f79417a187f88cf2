//! Faults of a `serve` process, switched on and off while it runs: see `inject.c`.

use crate::nodes::Nodes;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What can go wrong, by its place in the file that the library maps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Flushing to the disk.
    Sync = 0,
    /// Writing: there is no space.
    Full = 1,
    /// The wall clock, by so many milliseconds.
    Clock = 2,
}

/// The switches of one node.
pub(crate) struct Switches(File);

impl Switches {
    pub(crate) fn set(&self, fault: Fault, value: i64) {
        self.0.write_all_at(&value.to_ne_bytes(), 8 * fault as u64).expect("a number is written");
    }
}

/// Runs all nodes with the library, and gives the switches of each.
pub(crate) fn inject(nodes: &mut Nodes) -> Vec<Switches> {
    let library = library(nodes.root());
    let count = nodes.environment.len();
    (0..count)
        .map(|n| {
            let path = nodes.root().join(format!("{n}.faults"));
            fs::write(&path, [0; 24]).expect("a new file");
            let environment = [
                ("LD_PRELOAD", library.clone().into()),
                ("FAULTS", path.clone().into()),
                ("FAULTS_DIR", nodes.data(n).into()),
            ];
            nodes.environment[n].extend(environment);
            Switches(File::options().write(true).open(path).expect("just made"))
        })
        .collect()
}

fn library(dir: &Path) -> PathBuf {
    let library = dir.join("inject.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/inject.c");
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    let done = command.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(done.expect("a C compiler, which building this crate needs too").success());
    library
}
