//! What there is, and at which path.

use super::error::{ApiError, RequestError};
use super::{Api, backup, guard, log, members, operations, proposals, registry, streams};
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
        ("/v1/search", get(log::search)),
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
        ("/v1/members", get(members::members).post(members::change)),
        ("/v1/leadership", post(members::transfer)),
        ("/v1/snapshots", post(members::mark_snapshot)),
        ("/v1/compaction", post(operations::compact)),
        ("/v1/key", post(members::make_key)),
        ("/v1/epochs", get(members::epochs)),
        ("/v1/backup", get(backup::backup)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn document() -> Value {
        serde_json::from_str(operations::OPENAPI).unwrap()
    }

    #[test]
    fn the_openapi_document_lists_every_path_and_no_other() {
        let document = document();
        let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
        // OpenAPI has no notation for a part that spans slashes.
        let served: BTreeSet<_> = table().iter().map(|(path, _)| path.replace("{*", "{")).collect();
        assert_eq!(described, served);
    }

    #[test]
    fn every_reference_in_the_openapi_document_leads_somewhere() {
        fn visit(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(target)) = fields.get("$ref") {
                        let pointer = target.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{target}");
                    }
                    fields.values().for_each(|v| visit(v, document));
                }
                Value::Array(items) => items.iter().for_each(|v| visit(v, document)),
                _ => {}
            }
        }
        visit(&document(), &document());
    }
}
