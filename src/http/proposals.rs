//! Proposals, votes and ballots.

use super::error::{ApiError, RequestError};
use super::extract::{At, Body, NoParams, Params};
use super::{Api, json};
use crate::api::{OpenBallots, ProposalState, ProposalStatus, Propose, ProposeError, VoteRequest, Wait};
use crate::ids::ProposalId;
use crate::limits::MAX_WAIT_MS;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

pub(super) async fn propose(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
    Body(propose): Body<Propose>,
) -> Result<Response, ApiError> {
    if propose.wait_ms.is_some_and(|ms| ms > MAX_WAIT_MS) {
        return Err(RequestError::Bounds { field: "wait_ms", least: 0, most: MAX_WAIT_MS }.into());
    }
    let wait = propose.wait;
    match api.handle.submit(propose).await {
        Ok(status) => Ok((status_code(wait, &status), axum::Json(status)).into_response()),
        Err(error) => {
            let leader = match &error {
                ProposeError::NotLeader { leader: Some(leader), .. } => api.handle.http_address(leader),
                _ => None,
            };
            Err(ApiError::Propose { error, leader })
        }
    }
}

/// 202 says that the proposal may still get another outcome than the one shown, or none.
fn status_code(wait: Wait, status: &ProposalStatus) -> StatusCode {
    match (status.state, wait) {
        (ProposalState::Certified | ProposalState::Aborted, _)
        | (ProposalState::Committed, Wait::Committed | Wait::Accepted) => StatusCode::OK,
        (ProposalState::Committed, Wait::Certified) | (ProposalState::Pending, _) => StatusCode::ACCEPTED,
    }
}

pub(super) async fn by_id(
    State(api): State<Api>,
    At(id): At<ProposalId>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    api.ask(move |handle| handle.proposal(&id)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestParams {
    #[serde(default = "anonymous")]
    client: String,
    request_id: String,
}

/// The client identity of proposals that name none.
fn anonymous() -> String {
    "anonymous".into()
}

pub(super) async fn by_request(
    State(api): State<Api>,
    Params(RequestParams { client, request_id }): Params<RequestParams>,
) -> Result<Response, ApiError> {
    api.ask(move |handle| handle.request(&client, &request_id)).await
}

pub(super) async fn vote(
    State(api): State<Api>,
    At(id): At<ProposalId>,
    Params(NoParams {}): Params<NoParams>,
    Body(VoteRequest { granted }): Body<VoteRequest>,
) -> Result<StatusCode, ApiError> {
    api.handle.cast_vote(id, granted).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn ballots(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    json(&OpenBallots { ballots: api.handle.ballots() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_or_final_is_200_and_less_is_202() {
        use ProposalState::{Aborted, Certified, Committed, Pending};
        let status = |state| ProposalStatus {
            id: None,
            state,
            index: None,
            abort_reason: None,
            outcome: None,
            repeated: false,
            client: "c".into(),
            request_id: "r".into(),
        };
        for (wait, at_once, later) in [
            (Wait::Certified, vec![Certified, Aborted], vec![Pending, Committed]),
            (Wait::Committed, vec![Committed, Certified, Aborted], vec![Pending]),
            (Wait::Accepted, vec![Committed, Certified, Aborted], vec![Pending]),
        ] {
            assert!(at_once.into_iter().all(|s| status_code(wait, &status(s)) == StatusCode::OK));
            assert!(later.into_iter().all(|s| status_code(wait, &status(s)) == StatusCode::ACCEPTED));
        }
    }
}
