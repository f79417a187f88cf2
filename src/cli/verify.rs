//! `verify`: receipts against a genesis file, offline.

use super::output::{self, short};
use super::{Failure, Global};
use crate::certificate::{Genesis, Receipt, ReceiptError, VerifiedReceipt};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Largest genesis file, in bytes: a hundred members take less than a tenth of it.
const MAX_GENESIS: u64 = 1024 * 1024;
/// Largest receipt file, in bytes: a receipt grows by one member table for each change of members since the genesis.
const MAX_RECEIPT: u64 = 64 * 1024 * 1024;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The genesis file that you trust, from wherever you trust it
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Receipts, binary or JSON
    #[arg(required = true, value_name = "FILE")]
    receipts: Vec<PathBuf>,
}

impl Verify {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Failure> {
        let genesis = read_genesis(&self.genesis)?;
        let mut flawed = 0;
        for path in &self.receipts {
            let verified = read_receipt(path).and_then(|r| r.verify(&genesis).map_err(Failure::new));
            flawed += usize::from(verified.is_err());
            report(path, verified, &genesis, global.json)?;
        }
        match flawed {
            0 => Ok(ExitCode::SUCCESS),
            n => Err(Failure::new(format!("{n} of {} receipts prove nothing", self.receipts.len()))),
        }
    }
}

/// Reads the genesis file that everything is checked against.
pub(super) fn read_genesis(path: &Path) -> Result<Genesis, Failure> {
    let bytes = output::read(path, MAX_GENESIS)?;
    let text = String::from_utf8(bytes).map_err(|e| Failure::file("read the genesis", path, e))?;
    Genesis::from_json(&text).map_err(|e| Failure::file("use the genesis", path, e))
}

fn read_receipt(path: &Path) -> Result<Receipt, Failure> {
    let bytes = output::read(path, MAX_RECEIPT)?;
    decode_receipt(&bytes).map_err(Failure::new)
}

/// A receipt in either form: the JSON one begins with a brace, the tag of the binary one does not.
pub(super) fn decode_receipt(bytes: &[u8]) -> Result<Receipt, ReceiptError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.trim_start().starts_with('{') => Receipt::from_json(text),
        _ => Receipt::decode(bytes),
    }
}

fn report(
    path: &Path,
    verified: Result<VerifiedReceipt, Failure>,
    genesis: &Genesis,
    as_json: bool,
) -> Result<(), Failure> {
    let file = path.display().to_string();
    match verified {
        Ok(proof) if as_json => output::json(&json!({
            "file": file, "verified": true, "genesis_id": genesis.id(), "kind": proof.header.kind,
            "granted": proof.granted, "denied": proof.denied, "payload_present": proof.body.is_some(),
            "certificate": proof.certificate,
        })),
        Ok(proof) => output::line(&format!("ok    {file}: {}", describe(&proof))),
        Err(flaw) if as_json => output::json(&json!({ "file": file, "verified": false, "reason": flaw.message })),
        Err(flaw) => output::line(&format!("FLAW  {file}: {}", flaw.message)),
    }
}

fn describe(proof: &VerifiedReceipt) -> String {
    let header = &proof.header;
    let certificate = &proof.certificate;
    let signers: Vec<String> = certificate.signers.iter().map(short).collect();
    let mut text = format!("entry {} ({})", header.index, output::kind(header.kind));
    if let Some(id) = &header.proposal_id {
        text.push_str(&format!(", proposal {id}"));
    }
    if !proof.denied.is_empty() {
        let denied: Vec<String> = proof.denied.iter().map(short).collect();
        text.push_str(&format!(", denied by {}", denied.join(" ")));
    }
    if proof.body.is_none() {
        text.push_str(", payload pruned");
    }
    text.push_str(&format!(
        ", certified by {} at {} (head of {} entries)",
        signers.join(" "),
        output::time(certificate.committed_at),
        certificate.head.head.size
    ));
    text
}
