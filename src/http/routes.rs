//! What there is, and at which path.

use super::error::{ApiError, RequestError};
use super::{Api, guard, log, operations, proposals, registry, streams};
use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn;
use axum::routing::{MethodRouter, get, post};

/// Every path with its operation. Checked against the OpenAPI document.
fn table() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/v1/proposals", post(proposals::propose)),
        ("/v1/proposals/{id}", get(proposals::by_id)),
        ("/v1/proposals/{id}/votes", post(proposals::vote)),
        ("/v1/proposals/{id}/receipt", get(log::receipt_of)),
        ("/v1/requests", get(proposals::by_request)),
        ("/v1/ballots", get(proposals::ballots)),
        ("/v1/entries", get(log::entries)),
        ("/v1/entries/{index}", get(log::entry)),
        ("/v1/receipts/{index}", get(log::receipt)),
        ("/v1/certificates", get(log::certificates)),
        ("/v1/genesis", get(log::genesis)),
        ("/v1/commits", get(streams::commits)),
        ("/v1/aborts", get(streams::aborts)),
        ("/v1/registry/agents", get(registry::agents)),
        ("/v1/registry/agents/{id}", get(registry::agent)),
        ("/v1/registry/agents/{id}/history", get(registry::agent_history)),
        ("/v1/registry/config", get(registry::configs)),
        ("/v1/registry/config/{*key}", get(registry::config)),
        ("/v1/status", get(operations::status)),
        ("/v1/openapi.json", get(operations::openapi)),
        ("/healthz", get(operations::healthy)),
        ("/readyz", get(operations::ready)),
        ("/metrics", get(operations::metrics)),
    ]
}

pub(super) fn router(api: Api) -> Router {
    let routes = table().into_iter().fold(Router::new(), |router, (path, handler)| router.route(path, handler));
    guarded(routes.with_state(api))
}

/// Adds what every request meets: the guard, and JSON answers for what is not there.
pub(super) fn guarded(routes: Router) -> Router {
    routes
        .fallback(|uri: Uri| async move {
            let path = uri.path().chars().take(200).collect();
            ApiError::from(RequestError::NoRoute { path })
        })
        .method_not_allowed_fallback(|method: Method| async move {
            ApiError::from(RequestError::Method { method: method.to_string() })
        })
        .layer(from_fn(guard::guard))
}
