//! Who may ask: the checks every request passes before it is routed.
//!
//! The interface is plaintext and has no access control, so it listens on loopback only. That keeps other machines
//! out, but not the web pages that a browser on this machine has open: a page can send requests to `127.0.0.1`, and by
//! DNS rebinding (its own name resolved to 127.0.0.1 a moment later) it can also read the answers. Two checks close
//! this:
//!
//! - The host that the request names must be a loopback one. After rebinding, the browser still sends the page's name.
//! - A request that changes something must be `application/json`. A browser sends that across origins only after a
//!   preflight (CORS), which nothing here answers.

use super::error::{ApiError, RequestError};
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Refuses what a web page could have sent.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    match check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(e) => ApiError::from(e).into_response(),
    }
}

fn check(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), RequestError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(RequestError::Host { host: None }) };
    let host = String::from_utf8_lossy(host.as_bytes()).into_owned();
    if !names_loopback(&host) {
        return Err(RequestError::Host { host: Some(host) });
    }
    // A request in absolute form names its host in the URI, which then counts (RFC 9112, section 3.2.2).
    if let Some(authority) = uri.authority()
        && !names_loopback(authority.as_str())
    {
        return Err(RequestError::Host { host: Some(authority.to_string()) });
    }
    if !method.is_safe() && !is_json(headers) {
        return Err(RequestError::ContentType);
    }
    Ok(())
}

/// Whether a `Host` value (name or address, with or without a port) is this machine's own.
pub(super) fn names_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    if let Some(v6) = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        return v6.parse::<Ipv6Addr>().is_ok_and(|a| a.is_loopback());
    }
    name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok_and(|a| IpAddr::V4(a).is_loopback())
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(given), None) = (types.next(), types.next()) else { return false };
    let Ok(given) = given.to_str() else { return false };
    given.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_loopback_names_and_addresses_are_loopback() {
        for host in ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:8123", "127.9.8.7:1", "[::1]", "[::1]:8123"] {
            assert!(names_loopback(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "example.org",
            "example.org:80",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "user@localhost",
            "localhost@example.org",
            "192.168.0.1",
            "0.0.0.0",
            "[::]",
            "[fe80::1]",
            "::1",
            "localhost/",
            "127.0.0.1\u{0}",
        ] {
            assert!(!names_loopback(host), "{host}");
        }
    }

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn a_rebound_name_is_refused_in_the_header_and_in_the_uri() {
        let ok = headers(&[(header::HOST, "127.0.0.1:80")]);
        assert!(check(&Method::GET, &Uri::from_static("/v1/status"), &ok).is_ok());
        assert!(check(&Method::GET, &Uri::from_static("http://evil.example/v1/status"), &ok).is_err());
        assert!(check(&Method::GET, &Uri::from_static("/"), &headers(&[(header::HOST, "evil.example")])).is_err());
        assert!(check(&Method::GET, &Uri::from_static("/"), &HeaderMap::new()).is_err());
        let mut two = ok;
        two.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert!(check(&Method::GET, &Uri::from_static("/"), &two).is_err());
    }

    #[test]
    fn what_a_form_can_send_is_refused() {
        let uri = Uri::from_static("/v1/proposals");
        for (kind, allowed) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("text/plain; application/json", false),
            ("application/x-www-form-urlencoded", false),
            ("multipart/form-data", false),
            ("application/json-patch", false),
        ] {
            let given = headers(&[(header::HOST, "localhost"), (header::CONTENT_TYPE, kind)]);
            assert_eq!(check(&Method::POST, &uri, &given).is_ok(), allowed, "{kind}");
        }
        assert!(check(&Method::POST, &uri, &headers(&[(header::HOST, "localhost")])).is_err());
    }
}
