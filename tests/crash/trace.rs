//! What was written, and what may be left of it when the power fails.

use crate::model::Dice;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a disk writes at once.
const PAGE: usize = 4096;

/// One recorded call; see `record.c`.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) kind: String,
    pub(crate) path: String,
    pub(crate) second: String,
    offset: usize,
    pub(crate) data: Vec<u8>,
}

/// Reads the recorder's log.
pub(crate) fn read(log: &Path) -> Vec<Op> {
    let bytes = fs::read(log).expect("the recorder wrote a log");
    let mut rest = bytes.as_slice();
    let mut ops = Vec::new();
    while let Some(end) = rest.iter().position(|&b| b == b'\n') {
        let head = std::str::from_utf8(&rest[..end]).expect("paths under test are ASCII");
        let [kind, path, second, offset, length] = head.split('\t').collect::<Vec<_>>()[..] else {
            panic!("a line of the recorder's log: {head:?}");
        };
        let length: usize = length.parse().unwrap();
        let data = rest[end + 1..][..length].to_vec();
        rest = &rest[end + 1 + length..];
        ops.push(Op {
            kind: kind.into(),
            path: path.into(),
            second: second.into(),
            offset: offset.parse().unwrap_or(0),
            data,
        });
    }
    ops
}

/// What the kernel promises about names when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Only those whose directory was fsynced since are sure, of the others any may be there.
    Posix,
    /// As `Posix`, but they reach the disk in order (a journal).
    Journal,
}

/// How much of what was not fsynced is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    Nothing,
    SomePages,
    Everything,
}

#[derive(Default)]
struct Inode {
    /// (time, offset, data or none for a truncation)
    writes: Vec<(usize, usize, Option<usize>)>,
    synced: Option<usize>,
}

/// A change of names: when, which inode (none: a directory), from where, to where.
struct Naming<'a> {
    at: usize,
    kind: &'a str,
    path: &'a str,
    second: &'a str,
    inode: Option<usize>,
    /// The directory in which the name appears or vanishes.
    dir: usize,
    /// Whether that directory was fsynced since.
    sure: bool,
}

struct History<'a> {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    /// Directories by their present names, numbered in the order in which they were made.
    dirs: BTreeMap<String, usize>,
    namings: Vec<Naming<'a>>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Renames a file, or a directory and all below it.
fn rename<T>(names: &mut BTreeMap<String, T>, from: &str, to: &str) {
    let below = format!("{from}/");
    let moved: Vec<String> = names.keys().filter(|n| *n == from || n.starts_with(&below)).cloned().collect();
    for name in moved {
        let value = names.remove(&name).expect("just listed");
        names.insert(format!("{to}{}", &name[from.len()..]), value);
    }
}

impl<'a> History<'a> {
    fn of(ops: &'a [Op]) -> Self {
        let dirs = BTreeMap::from([(String::new(), 0)]);
        let mut h = Self { inodes: Vec::new(), names: BTreeMap::new(), dirs, namings: Vec::new() };
        let mut begun: BTreeMap<(&str, usize), usize> = BTreeMap::new();
        for (at, op) in ops.iter().enumerate() {
            match op.kind.as_str() {
                "CR" => {
                    h.names.insert(op.path.clone(), h.inodes.len());
                    h.inodes.push(Inode::default());
                    h.name(at, op);
                }
                "MK" => {
                    h.name(at, op);
                    h.dirs.insert(op.path.clone(), at + 1);
                }
                "RD" => {
                    h.name(at, op);
                    h.dirs.remove(&op.path);
                }
                "MV" => {
                    h.name(at, op);
                    rename(&mut h.names, &op.path, &op.second);
                    rename(&mut h.dirs, &op.path, &op.second);
                }
                "RM" => {
                    h.name(at, op);
                    h.names.remove(&op.path);
                }
                "W" | "T" => {
                    let data = (op.kind == "W").then_some(at);
                    if let Some(&inode) = h.names.get(&op.path) {
                        h.inodes[inode].writes.push((at, op.offset, data));
                    }
                }
                "SB" => drop(begun.insert((&op.path, op.offset), at)),
                "S" => {
                    let since = begun.get(&(op.path.as_str(), op.offset)).copied().unwrap_or(at);
                    if let Some(&inode) = h.names.get(&op.path) {
                        h.inodes[inode].synced = h.inodes[inode].synced.max(Some(since));
                    } else if let Some(&dir) = h.dirs.get(&op.path) {
                        h.namings.iter_mut().filter(|n| n.dir == dir && n.at < since).for_each(|n| n.sure = true);
                    }
                }
                _ => {}
            }
        }
        h
    }

    fn name(&mut self, at: usize, op: &'a Op) {
        let inode = self.names.get(&op.path).copied();
        let shown = if op.kind == "MV" { &op.second } else { &op.path };
        let dir = self.dirs[parent(shown)];
        self.namings.push(Naming { at, kind: &op.kind, path: &op.path, second: &op.second, inode, dir, sure: false });
    }
}

/// Builds in `target` what may be left when the power fails after these operations.
pub(crate) fn crash(ops: &[Op], names: Names, unsynced: Unsynced, dice: &mut Dice, target: &Path) {
    let history = History::of(ops);
    let (files, dirs) = surviving_names(&history, ops.len(), names, unsynced, dice);
    fs::create_dir_all(target).unwrap();
    // What lies in a directory whose own name did not survive is gone.
    let there = |name: &str| {
        std::iter::successors(Some(parent(name)), |d| Some(parent(d)))
            .take_while(|d| !d.is_empty())
            .all(|d| dirs.contains(d))
    };
    for dir in dirs.iter().filter(|dir| there(dir)) {
        fs::create_dir_all(target.join(dir)).unwrap();
    }
    for (name, inode) in files.into_iter().filter(|(name, _)| there(name)) {
        let path: PathBuf = target.join(&name);
        fs::write(path, surviving_bytes(&history.inodes[inode], ops, unsynced, dice)).unwrap();
    }
}

fn surviving_names(
    history: &History<'_>,
    end: usize,
    names: Names,
    unsynced: Unsynced,
    dice: &mut Dice,
) -> (BTreeMap<String, usize>, BTreeSet<String>) {
    let sure = history.namings.iter().filter(|n| n.sure).map(|n| n.at).max().unwrap_or(0);
    let until = match unsynced {
        Unsynced::Nothing => sure,
        Unsynced::SomePages => sure.max(dice.below(end + 1)),
        Unsynced::Everything => end,
    };
    let mut files = BTreeMap::new();
    let mut dirs: BTreeMap<String, ()> = BTreeMap::new();
    for n in &history.namings {
        let there = match names {
            Names::Journal => n.at <= until,
            Names::Posix => match unsynced {
                Unsynced::Nothing => n.sure,
                Unsynced::SomePages => n.sure || dice.below(2) == 0,
                Unsynced::Everything => true,
            },
        };
        match (there, n.kind) {
            (false, _) => {}
            (_, "CR") => drop(n.inode.map(|inode| files.insert(n.path.to_owned(), inode))),
            (_, "MK") => drop(dirs.insert(n.path.to_owned(), ())),
            (_, "RM") => drop(files.remove(n.path)),
            (_, "RD") => drop(dirs.remove(n.path)),
            (_, "MV") => match n.inode {
                Some(inode) => {
                    files.remove(n.path);
                    files.insert(n.second.to_owned(), inode);
                }
                None => {
                    rename(&mut files, n.path, n.second);
                    rename(&mut dirs, n.path, n.second);
                }
            },
            (_, other) => panic!("an unknown change of names {other}"),
        }
    }
    (files, dirs.into_keys().collect())
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

/// Everything that was fsynced, and of each page the first few of the writes since.
fn surviving_bytes(inode: &Inode, ops: &[Op], unsynced: Unsynced, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (sure, open): (Vec<_>, Vec<_>) = inode.writes.iter().partition(|w| inode.synced.is_some_and(|s| w.0 < s));
    let pages = |at: usize, data: &[u8]| at / PAGE..(at + data.len()).div_ceil(PAGE);
    for (_, at, data) in sure {
        match data {
            Some(op) => put(&mut bytes, at, &ops[op].data),
            None => bytes.resize(at, 0),
        }
    }
    if unsynced == Unsynced::Nothing {
        return bytes;
    }
    let mut count: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, at, data) in &open {
        for page in data.map_or(0..0, |op| pages(*at, &ops[op].data)) {
            *count.entry(page).or_default() += 1;
        }
    }
    let mut left = count;
    if unsynced == Unsynced::SomePages {
        left.values_mut().for_each(|n| *n = dice.below(*n + 1));
    }
    for (_, at, data) in open {
        let Some(op) = data else {
            if unsynced == Unsynced::Everything || dice.below(2) == 0 {
                bytes.resize(at, 0);
            }
            continue;
        };
        let data = &ops[op].data;
        for page in pages(at, data) {
            let Some(n @ 1..) = left.get_mut(&page) else { continue };
            *n -= 1;
            let (from, to) = (at.max(page * PAGE), (at + data.len()).min((page + 1) * PAGE));
            put(&mut bytes, from, &data[from - at..to - at]);
        }
    }
    bytes
}
