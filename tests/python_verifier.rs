//! A verifier that shares no code with ours, written from `docs/formats.md`, agrees with it on good and bad receipts.

#[path = "support/certificates.rs"]
mod support;

use concordat::certificate::*;
use concordat::ids::{LogIndex, Term};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::*;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/verify_receipt.py");

fn run(genesis: &Path, receipts: &[PathBuf]) -> Output {
    let probe = Command::new("python3").args(["-c", "import py_ecc"]).output();
    assert!(
        probe.is_ok_and(|p| p.status.success()),
        "this test needs python3 with py_ecc: run `.ci/run`, or `pip install py_ecc==8.0.0`"
    );
    Command::new("python3").arg(SCRIPT).arg(genesis).args(receipts).output().unwrap()
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A log with a receipt of every interesting sort.
fn log() -> (Cluster, Vec<(&'static str, Receipt)>) {
    let mut c = Cluster::new(vec![member(1, Policy::Auto), member(2, Policy::Auto), member(3, Policy::Manual)]);
    let granted = c.ballot(
        "{\"text\":\"é\\u0007\"}\u{1}\"\\\u{7f}\u{2028}".as_bytes(),
        &Votes { required: 2, grants: &[1, 3], denials: &[2] },
    );
    let rejected = c.abort(b"x", AbortReason::Rejected, &Votes { required: 2, grants: &[1], denials: &[2, 3] });
    let expired = c.abort(b"y", AbortReason::Expired, &Votes { required: 3, grants: &[1], denials: &[] });
    let early = c.head();
    c.open_change(autos(2..=4));
    let in_flight = c.receipt(granted);
    c.term = Term(2);
    c.append(Kind::Noop, b"another leader");
    c.close_change();
    let signed = c.propose(&[0xff, 0x00]);
    let mut pruned = c.receipt(signed);
    pruned.body = None;
    let receipts = vec![
        ("granted", c.receipt_under(granted, early.clone())),
        ("rejected", c.receipt_under(rejected, early.clone())),
        ("expired", c.receipt_under(expired, early)),
        ("in_flight", in_flight),
        ("across", c.receipt(LogIndex(1))),
        ("signed", c.receipt(signed)),
        ("pruned", pruned),
    ];
    (c, receipts)
}

#[test]
fn the_python_verifier_accepts_what_ours_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let (c, receipts) = log();
    let genesis = write(dir.path(), "genesis.json", c.genesis.to_json());
    let mut files = Vec::new();
    for (name, receipt) in &receipts {
        receipt.verify(&c.genesis).unwrap();
        files.push(write(dir.path(), &format!("{name}.json"), receipt.to_json()));
    }
    files.push(write(dir.path(), "signed.bin", receipts[5].1.encode()));
    let output = run(&genesis, &files);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().filter(|l| l.contains(": OK index")).count(), files.len(), "{text}");
    let granters = format!("granted by {}, {}, denied by {}", did(1), did(3), did(2));
    assert!(text.lines().next().unwrap().ends_with(&granters), "{text}");
}

#[test]
fn the_python_verifier_refuses_what_ours_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let (c, receipts) = log();
    let genesis = write(dir.path(), "genesis.json", c.genesis.to_json());
    let of = |name: &str| receipts.iter().find(|(n, _)| *n == name).unwrap().1.clone();
    let mut bad = Vec::new();
    let mut tampered = |from: &str, change: fn(&mut Receipt), why: &'static str| {
        let mut receipt = of(from);
        change(&mut receipt);
        receipt.verify(&c.genesis).expect_err(why);
        bad.push((receipt.encode(), why));
    };
    tampered("granted", |r| r.header.proposed_at -= 1, "not in the certified tree");
    tampered("granted", |r| r.path[0].0[0] ^= 1, "not in the certified tree");
    tampered("granted", |r| r.certificate.halves[0].signers = Bitmap::of(3, [0, 2]), "does not verify");
    tampered("granted", |r| r.certificate.halves[0].signers = Bitmap::of(3, [0]), "too few signers");
    tampered("granted", |r| r.certificate.halves[0].signers = Bitmap::from_bytes(vec![0x83]), "does not fit 3 voters");
    tampered("granted", |r| r.last_header = r.header.clone(), "last header");
    tampered("signed", |r| r.chain.steps.clear(), "exactly the steps");
    tampered("signed", |r| r.body.as_mut().unwrap().payload[0] = 0, "payload does not match");
    tampered("in_flight", |r| drop(r.certificate.halves.pop()), "exactly the steps");
    tampered("in_flight", |r| r.chain.steps[0].joint.halves.swap(0, 1), "another epoch");
    let text = of("granted").to_json().replacen("\"epoch\": 0", "\"epoch\": 1", 1);
    bad.push((text.into_bytes(), "fields shown"));
    for version in ["true", "1.0"] {
        let shown = format!("\"concordat_receipt\": {version}");
        let text = of("granted").to_json().replacen("\"concordat_receipt\": 1", &shown, 1);
        bad.push((text.into_bytes(), "unknown receipt version"));
    }
    let mut log = Cluster::new(c.genesis.table.members().to_vec());
    let index = log.abort(b"x", AbortReason::Rejected, &Votes { required: 2, grants: &[1], denials: &[2] });
    bad.push((log.receipt(index).encode(), "contradict the reason"));
    let index = log.propose(b"{}");
    bad.push((log.receipt(index).encode(), "needed a ballot"));
    let files: Vec<_> = (0..).zip(&bad).map(|(i, (b, _))| write(dir.path(), &format!("{i}.bad"), b)).collect();
    let output = run(&genesis, &files);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), bad.len(), "{text}");
    for (line, (_, why)) in lines.iter().zip(&bad) {
        assert!(line.contains("REFUSED") && line.contains(why), "{line}: expected {why}");
    }
}

#[test]
fn the_python_verifier_refuses_an_altered_genesis_and_another_cluster_s() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Cluster::new(autos(1..=1));
    let index = c.propose(b"{}");
    let receipt = write(dir.path(), "receipt.json", c.receipt(index).to_json());
    let altered = write(dir.path(), "a.json", c.genesis.to_json().replacen("synthetic", "synthesis", 1));
    let renamed = Genesis::new("another", QuorumRule::Majority, c.genesis.table.clone()).unwrap();
    let other = write(dir.path(), "b.json", renamed.to_json());
    // What Python takes for a 1 is no version of the format, and our reader refuses it too.
    let version = |value: &str| {
        let text =
            c.genesis.to_json().replacen("\"concordat_genesis\": 1", &format!("\"concordat_genesis\": {value}"), 1);
        Genesis::from_json(&text).expect_err("no version");
        write(dir.path(), &format!("{value}.json"), text)
    };
    let versions = [version("true"), version("1.0")].map(|file| (file, "unknown genesis version"));
    let others = [(altered, "not that of the contents"), (other, "another epoch")];
    for (genesis, why) in others.into_iter().chain(versions) {
        let output = run(&genesis, std::slice::from_ref(&receipt));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == Some(1) && text.contains(why), "{text}");
    }
}
