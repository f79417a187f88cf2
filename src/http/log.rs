//! What auditors read: entries, receipts, certificates and the genesis.

use super::error::{ApiError, RequestError};
use super::extract::{At, NoParams, Params};
use super::{Api, typed};
use crate::api::{EntryPage, EntryView, Search};
use crate::certificate::Receipt;
use crate::ids::{LogIndex, ProposalId};
use crate::limits::{MAX_PAGE, MAX_PAGE_BYTES};
use crate::node::{Handle, QueryError};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde::Deserialize;

/// Entries in a page when the caller does not say.
const DEFAULT_PAGE: usize = 100;
/// Entries read at a time while a page fills, so that a page stays within [`MAX_PAGE_BYTES`] whatever they weigh.
const SLICE: usize = 32;

/// Checks a page's `limit`.
pub(super) fn page_limit(limit: Option<usize>) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if (1..=MAX_PAGE).contains(&limit) {
        return Ok(limit);
    }
    Err(RequestError::Bounds { field: "limit", least: 1, most: MAX_PAGE as u64 }.into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntriesParams {
    #[serde(default)]
    from: LogIndex,
    limit: Option<usize>,
}

pub(super) async fn entries(
    State(api): State<Api>,
    Params(EntriesParams { from, limit }): Params<EntriesParams>,
) -> Result<Response, ApiError> {
    let limit = page_limit(limit)?;
    api.ask(move |handle| page(handle, from, limit)).await
}

fn page(handle: &Handle, from: LogIndex, limit: usize) -> Result<EntryPage, QueryError> {
    let mut page = handle.entries(from, limit.min(SLICE))?;
    let mut bytes = page.entries.iter().map(weight).sum::<usize>();
    while let Some(next) = page.next
        && page.entries.len() < limit
        && bytes < MAX_PAGE_BYTES
    {
        let more = handle.entries(next, SLICE.min(limit - page.entries.len()))?;
        bytes += more.entries.iter().map(weight).sum::<usize>();
        page.entries.extend(more.entries);
        page.next = more.next;
        page.commit_index = more.commit_index;
    }
    Ok(page)
}

/// What an entry adds to an answer, about.
pub(super) fn weight(entry: &EntryView) -> usize {
    // The payload stands in the entry's own bytes once more.
    let body = entry.entry.as_ref().map_or(0, String::len);
    entry.header.len() + 2 * body
}

pub(super) async fn entry(
    State(api): State<Api>,
    At(index): At<LogIndex>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    api.ask(move |handle| handle.entry(index)).await
}

pub(super) async fn search(State(api): State<Api>, Params(search): Params<Search>) -> Result<Response, ApiError> {
    let limit = page_limit(search.limit)?;
    api.ask(move |handle| handle.search(&search, limit)).await
}

pub(super) async fn receipt(
    State(api): State<Api>,
    At(index): At<LogIndex>,
    Params(NoParams {}): Params<NoParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let binary = wants_bytes(&headers);
    api.answer(move |handle| Ok(write_receipt(&handle.receipt(index)?, binary))).await
}

pub(super) async fn receipt_of(
    State(api): State<Api>,
    At(id): At<ProposalId>,
    Params(NoParams {}): Params<NoParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let binary = wants_bytes(&headers);
    api.answer(move |handle| Ok(write_receipt(&handle.receipt_of(&id)?, binary))).await
}

/// Whether the caller asks for canonical bytes; JSON otherwise.
fn wants_bytes(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|kind| kind.trim().eq_ignore_ascii_case("application/octet-stream"))
}

fn write_receipt(receipt: &Receipt, binary: bool) -> Response {
    let mut response = if binary {
        typed("application/octet-stream", receipt.encode())
    } else {
        typed("application/json", receipt.to_json())
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificatesParams {
    #[serde(default)]
    above: u64,
    limit: Option<usize>,
}

pub(super) async fn certificates(
    State(api): State<Api>,
    Params(CertificatesParams { above, limit }): Params<CertificatesParams>,
) -> Result<Response, ApiError> {
    let limit = page_limit(limit)?;
    api.ask(move |handle| handle.certificates(above, limit)).await
}

pub(super) async fn genesis(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    Ok(typed("application/json", api.handle.genesis().to_json()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_bytes_are_given_to_those_who_name_them() {
        for (accept, bytes) in [
            ("application/octet-stream", true),
            ("Application/Octet-Stream;q=0.9", true),
            ("text/html, application/octet-stream", true),
            ("application/json", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_bytes(&headers), bytes, "{accept}");
        }
        assert!(!wants_bytes(&HeaderMap::new()));
    }

    #[test]
    fn a_page_holds_between_one_and_a_thousand() {
        assert_eq!(page_limit(None).unwrap(), 100);
        assert_eq!(page_limit(Some(1000)).unwrap(), 1000);
        for limit in [0, 1001, usize::MAX] {
            assert!(page_limit(Some(limit)).is_err());
        }
    }
}
