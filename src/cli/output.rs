//! What people and machines see: tables, times, progress bars, and files that are never overwritten by accident.

use super::Failure;
use crate::certificate::{AbortReason, Kind};
use crate::registry::Outcome;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;

/// Writes one line to stdout. A reader that has gone away (a closed pipe) is an error like any other, so that a long
/// command ends instead of working for nobody.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| Failure::new(format!("cannot write to stdout: {e}")))
}

/// Writes one value as one line of JSON to stdout.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&to_json(value)?)
}

/// One line of JSON.
pub(super) fn to_json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::new(format!("cannot write the answer as JSON: {e}")))
}

/// A table with aligned columns; the last column is never padded.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let columns = head.len();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    let mut write = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (cell, width) in cells.zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(out, "{cell:width$}  ");
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    write(&mut head.iter().copied());
    for row in rows {
        write(&mut row.iter().map(String::as_str));
    }
    text.pop();
    text
}

/// The first of many characters of an identity, enough to tell members apart.
pub(super) fn short(id: &impl std::fmt::Display) -> String {
    let text = id.to_string();
    match text.strip_prefix("did:key:") {
        Some(key) => key.chars().take(12).collect(),
        None => text.chars().take(12).collect(),
    }
}

/// The name of an entry's kind, as JSON spells it.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Noop => "noop",
        Kind::Proposal => "proposal",
        Kind::Aborted => "aborted",
        Kind::Epoch => "epoch",
        Kind::EpochFinal => "epoch_final",
        Kind::SnapshotMark => "snapshot_mark",
        Kind::SnapshotManifest => "snapshot_manifest",
    }
}

/// Why a proposal was aborted.
pub(super) fn abort_reason(reason: Option<AbortReason>) -> &'static str {
    match reason {
        Some(AbortReason::Rejected) => "rejected",
        Some(AbortReason::Expired) => "expired",
        None => "aborted",
    }
}

/// What applying an entry did.
pub(super) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Registered { .. } => "registered".to_owned(),
        Outcome::StatusSet { .. } => "status set".to_owned(),
        Outcome::Deregistered { .. } => "deregistered".to_owned(),
        Outcome::ConfigSet { .. } => "config set".to_owned(),
        Outcome::Conflict { actual: Some(actual) } => format!("conflict (the record is at revision {actual})"),
        Outcome::Conflict { actual: None } => "conflict (there is no such record)".to_owned(),
        Outcome::NotFound => "no such agent".to_owned(),
        Outcome::Opaque => "opaque".to_owned(),
        Outcome::Repeat { first } => format!("repeat of entry {first}"),
        Outcome::RequestExpired => "request expired".to_owned(),
        Outcome::Aborted { reason } => abort_reason(Some(*reason)).to_owned(),
    }
}

/// Milliseconds since the Unix epoch as `2026-11-22T10:20:30.456Z`.
pub(super) fn time(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute, second, milli) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// The Gregorian date of a day since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A progress bar on stderr; nothing is drawn when stderr is no terminal.
pub(super) fn progress(total: u64, what: &'static str) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template("{msg:<10} {bar:30} {pos}/{len}  {per_sec}  eta {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// Writes a file that must not destroy another: an equal file is left alone, a different one is refused. The file
/// appears whole or not at all, and is durable on return.
pub(super) fn write_new(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::file("write", path, e);
    let mut file = match std::fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return if std::fs::read(path).map_err(fail)? == contents {
                Ok(())
            } else {
                Err(Failure::new(format!("{} exists and is different", path.display()))
                    .hint("choose another name, or remove it if nothing needs it any more"))
            };
        }
        Err(e) => return Err(fail(e)),
    };
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    if let Err(e) = written {
        drop(file);
        // A torn file would block the next try; when even removing fails, the first error is the one to report.
        let _ = std::fs::remove_file(path);
        return Err(fail(e));
    }
    Ok(())
}

/// Writes a file in place of whatever has its name: at any instant it is wholly the old one or wholly the new one, and it
/// is durable on return.
pub(super) fn replace(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".next");
    let next = path.with_file_name(name);
    let written = std::fs::File::create(&next)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&next, path));
    written.map_err(|e| Failure::file("write", path, e))?;
    sync_dir(path.parent().unwrap_or(path))
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Failure> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Failure::file("sync", dir, e))
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let fail = |e| Failure::file("read", path, e);
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(fail)?.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(Failure::new(format!("{} has more than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

/// Bytes, for people.
pub(super) fn mib(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / (1024 * 1024);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil_dates() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_795_342_830_456), "2026-11-22T10:20:30.456Z");
        assert_eq!(time(4_107_542_399_999), "2100-02-28T23:59:59.999Z");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "long".into(), "x".into()], vec!["bbb".into(), "c".into(), String::new()]];
        assert_eq!(table(&["ID", "B", "C"], &rows), "ID   B     C\na    long  x\nbbb  c");
    }

    #[test]
    fn an_equal_file_is_left_alone_and_a_different_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_new(&path, b"one").unwrap();
        write_new(&path, b"one").unwrap();
        assert!(write_new(&path, b"two").unwrap_err().message.contains("different"));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_file_beyond_its_bound_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(read(&path, 4).is_err());
    }
}
