//! Members and leadership.

use super::error::ApiError;
use super::extract::{Body, NoParams, Params};
use super::{Api, json, typed};
use crate::api::{ChangeError, ChangeMembers, MarkError, TransferError, TransferLeadership};
use crate::ids::{Epoch, NodeId};
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

pub(super) async fn members(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    json(&api.handle.members())
}

pub(super) async fn change(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
    Body(change): Body<ChangeMembers>,
) -> Result<Response, ApiError> {
    match api.handle.change_members(change).await {
        Ok(changed) => json(&changed),
        Err(error) => {
            let leader = match &error {
                ChangeError::NotLeader { leader } => api.leader_address(*leader),
                _ => None,
            };
            Err(ApiError::Change { error, leader })
        }
    }
}

pub(super) async fn transfer(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
    Body(TransferLeadership { to }): Body<TransferLeadership>,
) -> Result<Response, ApiError> {
    match api.handle.transfer_leadership(to).await {
        Ok(transferred) => json(&transferred),
        Err(error) => {
            let leader = match &error {
                TransferError::NotLeader { leader } => api.leader_address(*leader),
                _ => None,
            };
            Err(ApiError::Transfer { error, leader })
        }
    }
}

pub(super) async fn mark_snapshot(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    match api.handle.mark_snapshot().await {
        Ok(marked) => json(&marked),
        Err(error) => {
            let leader = match &error {
                MarkError::NotLeader { leader } => api.leader_address(*leader),
                _ => None,
            };
            Err(ApiError::Mark { error, leader })
        }
    }
}

pub(super) async fn make_key(
    State(api): State<Api>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    json(&api.handle.make_key().await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EpochsParams {
    #[serde(default)]
    above: Epoch,
}

/// The proofs of membership changes, in canonical bytes, as many as go into one answer.
pub(super) async fn epochs(
    State(api): State<Api>,
    Params(EpochsParams { above }): Params<EpochsParams>,
) -> Result<Response, ApiError> {
    api.answer(move |handle| Ok(typed("application/octet-stream", handle.epoch_chain(above)?.encode()))).await
}

impl Api {
    fn leader_address(&self, leader: Option<NodeId>) -> Option<String> {
        leader.and_then(|leader| self.handle.http_address(&leader))
    }
}
