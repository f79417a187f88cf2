//! The JSON form of receipts: the canonical bytes in base64, and what they say, for people.

use super::{Receipt, ReceiptError};
use crate::certificate::{Body, EpochStep, HeadCertificate, Header, Request};
use crate::ids::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

const VERSION: u64 = 1;

/// What a reader takes from the file; all else is compared.
#[derive(Deserialize)]
struct Carrier {
    concordat_receipt: u64,
    receipt: String,
}

#[derive(Serialize)]
struct View<'a> {
    concordat_receipt: u64,
    receipt: String,
    header: &'a Header,
    body: Option<BodyView<'a>>,
    path: &'a [Digest],
    certificate: &'a HeadCertificate,
    last_header: &'a Header,
    last_path: &'a [Digest],
    chain: Vec<StepView<'a>>,
}

#[derive(Serialize)]
struct BodyView<'a> {
    salt: String,
    request: Option<&'a Request>,
    /// `None` when it is not UTF-8; the bytes are in the base64.
    payload: Option<&'a str>,
}

#[derive(Serialize)]
struct StepView<'a> {
    header: &'a Header,
    joint: &'a HeadCertificate,
    path: &'a [Digest],
}

impl<'a> From<&'a Body> for BodyView<'a> {
    fn from(body: &'a Body) -> Self {
        let payload = std::str::from_utf8(&body.payload).ok();
        Self { salt: hex::encode(body.salt), request: body.request.as_ref(), payload }
    }
}

impl<'a> From<&'a EpochStep> for StepView<'a> {
    fn from(step: &'a EpochStep) -> Self {
        Self { header: &step.entry.header, joint: &step.joint, path: &step.path }
    }
}

impl Receipt {
    /// A JSON file of version, `receipt` (base64 of the canonical bytes) and, for people, the decoded fields, which a
    /// verifier checks against the bytes (any difference is an error).
    #[must_use]
    pub fn to_json(&self) -> String {
        let view = View {
            concordat_receipt: VERSION,
            receipt: STANDARD.encode(self.encode()),
            header: &self.header,
            body: self.body.as_ref().map(BodyView::from),
            path: &self.path,
            certificate: &self.certificate,
            last_header: &self.last_header,
            last_path: &self.last_path,
            chain: self.chain.steps.iter().map(StepView::from).collect(),
        };
        serde_json::to_string_pretty(&view).expect("strings, numbers and arrays") + "\n"
    }

    /// Reads the JSON file, which must be byte for byte what [`Receipt::to_json`] writes.
    ///
    /// # Errors
    /// [`ReceiptError`].
    pub fn from_json(text: &str) -> Result<Self, ReceiptError> {
        let carrier: Carrier = serde_json::from_str(text)?;
        if carrier.concordat_receipt != VERSION {
            return Err(ReceiptError::Version(carrier.concordat_receipt));
        }
        let receipt = Self::decode(&STANDARD.decode(carrier.receipt)?)?;
        if receipt.to_json() == text { Ok(receipt) } else { Err(ReceiptError::Altered) }
    }
}
