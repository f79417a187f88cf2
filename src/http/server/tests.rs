use super::*;
use crate::api::{ErrorBody, Propose};
use crate::http::error::ApiError;
use crate::http::extract::{At, Body, Params};
use crate::http::routes::guarded;
use crate::ids::LogIndex;
use crate::limits::{MAX_HTTP_BODY, MAX_HTTP_DISCARD};
use axum::routing::{get, post};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A running server and a client for it.
pub(crate) struct Running {
    pub(crate) server: Server,
    shutdown: CancellationToken,
    http: reqwest::Client,
}

pub(crate) async fn run(routes: Router) -> Running {
    let shutdown = CancellationToken::new();
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let server = super::run(listener, routes, shutdown.clone(), Duration::from_millis(200)).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    Running { server, shutdown, http }
}

impl Running {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.local_addr())
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(self.url(path)).send().await.unwrap()
    }

    async fn error(&self, request: reqwest::RequestBuilder) -> (StatusCode, ErrorBody) {
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        let body: ErrorBody = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} {text:?}: {e}"));
        assert!(!body.message.is_empty() && body.without_effect, "{body:?}");
        (status, body)
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> (StatusCode, ErrorBody) {
        let request = self.http.post(self.url("/propose")).header("content-type", "application/json");
        self.error(request.body(body)).await
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TestParams {
    #[serde(default)]
    from: LogIndex,
}

async fn api() -> Running {
    let routes = Router::new()
        .route("/propose", post(async |Body(p): Body<Propose>| axum::Json(p)))
        .route("/at/{index}", get(async |At(index): At<LogIndex>| index.to_string()))
        .route("/from", get(async |Params(TestParams { from }): Params<TestParams>| from.to_string()))
        .route("/panic", get(async || -> Result<(), ApiError> { panic!("as the test wants it") }));
    run(guarded(routes)).await
}

#[tokio::test]
async fn whatever_is_wrong_with_a_request_is_said_in_json() {
    let api = api().await;
    let get = |path: &str| api.error(api.http.get(api.url(path)));
    let (status, body) = get("/nothing/here").await;
    assert_eq!((status, &*body.code), (StatusCode::NOT_FOUND, "no_route"));
    assert!(body.message.contains("/nothing/here"));
    let (status, body) = api.error(api.http.get(api.url("/propose"))).await;
    assert_eq!((status, &*body.code), (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"));
    for (path, part) in [("/at/x", "\"x\""), ("/at/-1", "\"-1\""), ("/at/%FF", "index")] {
        let (status, body) = get(path).await;
        assert_eq!((status, &*body.code), (StatusCode::BAD_REQUEST, "invalid_path"), "{path}");
        assert!(body.message.contains(part), "{body:?}");
    }
    for (path, part) in [("/from?form=1", "form"), ("/from?from=a", "from"), ("/from?from=1&from=2", "from")] {
        let (status, body) = get(path).await;
        assert_eq!((status, &*body.code), (StatusCode::BAD_REQUEST, "invalid_query"), "{path}");
        assert!(body.message.contains(part), "{body:?}");
    }
    for (sent, expected, code, part) in [
        ("", StatusCode::BAD_REQUEST, "malformed_json", "EOF"),
        ("{\"payload\":", StatusCode::BAD_REQUEST, "malformed_json", "column"),
        ("{}", StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", "payload"),
        ("{\"payload\":1,\"tll_ms\":1}", StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", "tll_ms"),
        ("{\"payload\":1,\"ttl_ms\":\"5\"}", StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", "ttl_ms"),
        ("{\"payload\":1,\"wait\":\"forever\"}", StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", "forever"),
        ("{\"payload\":1}{}", StatusCode::BAD_REQUEST, "malformed_json", "trailing"),
    ] {
        let (status, body) = api.post(sent).await;
        assert_eq!((status, &*body.code), (expected, code), "{sent}: {body:?}");
        assert!(body.message.contains(part), "{sent}: {body:?}");
    }
    let deep = format!("{{\"payload\":{}}}", "[".repeat(100_000));
    assert_eq!(api.post(deep).await.0, StatusCode::BAD_REQUEST);
    // The server is as well as before.
    assert_eq!(api.get("/at/7").await.text().await.unwrap(), "7");
}

#[tokio::test]
async fn the_allow_header_stays_on_a_wrong_method() {
    let api = api().await;
    let response = api.http.request(Method::DELETE, api.url("/propose"));
    let response = response.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(response.headers()["allow"], "POST");
}

#[tokio::test]
async fn an_oversized_body_is_answered_and_not_kept() {
    let api = api().await;
    let fits = format!("{{\"payload\":\"{}\"}}", "x".repeat(MAX_HTTP_BODY - 14));
    assert_eq!(fits.len(), MAX_HTTP_BODY);
    let request = api.http.post(api.url("/propose")).header("content-type", "application/json");
    assert_eq!(request.body(fits.clone()).send().await.unwrap().status(), StatusCode::OK);
    for size in [MAX_HTTP_BODY + 1, MAX_HTTP_DISCARD] {
        let (status, body) = api.post("x".repeat(size)).await;
        assert_eq!((status, &*body.code), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
    }
}

#[tokio::test]
async fn requests_that_a_web_page_could_send_are_refused() {
    let api = api().await;
    let rebound = api.http.get(api.url("/at/1")).header("host", "evil.example");
    let (status, body) = api.error(rebound).await;
    assert_eq!((status, &*body.code), (StatusCode::MISDIRECTED_REQUEST, "host_not_allowed"));
    let form = api.http.post(api.url("/propose")).header("content-type", "text/plain").body("{\"payload\":1}");
    let (status, body) = api.error(form).await;
    assert_eq!((status, &*body.code), (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"));
    let untyped = api.http.post(api.url("/propose")).body("{\"payload\":1}");
    assert_eq!(api.error(untyped).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    // A preflight gets no permission.
    let preflight = api.http.request(Method::OPTIONS, api.url("/propose")).header("origin", "http://evil.example");
    let answer = preflight.send().await.unwrap();
    assert!(!answer.status().is_success());
    assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
}

#[tokio::test]
async fn a_handler_that_panics_takes_only_its_connection_along() {
    let api = api().await;
    assert!(api.http.get(api.url("/panic")).send().await.is_err());
    assert_eq!(api.get("/at/7").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn garbage_and_oversized_heads_are_refused() {
    let api = api().await;
    for sent in ["\u{0}\u{1}\u{2}\r\n\r\n".to_owned(), format!("GET /{} HTTP/1.1\r\n", "a".repeat(2 * MAX_HTTP_HEAD))] {
        let mut socket = TcpStream::connect(api.server.local_addr()).await.unwrap();
        // The server may close before it has read everything.
        let _closed = socket.write_all(sent.as_bytes()).await;
        let mut answer = Vec::new();
        let _closed = socket.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(api.get("/at/7").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn shutdown_lets_idle_connections_go_at_once_and_stops_listening() {
    let api = api().await;
    assert_eq!(api.get("/at/7").await.status(), StatusCode::OK);
    let address = api.server.local_addr();
    api.shutdown.cancel();
    tokio::time::timeout(Duration::from_millis(HTTP_DRAIN_MS), api.server.finished()).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever_for_an_answer() {
    let (asked, mut handling) = tokio::sync::mpsc::channel(1);
    let never = async move || {
        asked.send(()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let api = run(Router::new().route("/never", get(never))).await;
    let waiting = tokio::spawn(api.http.get(api.url("/never")).send());
    handling.recv().await.unwrap();
    api.shutdown.cancel();
    tokio::time::timeout(Duration::from_millis(HTTP_DRAIN_MS), api.server.finished()).await.unwrap();
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test]
async fn only_a_free_loopback_address_is_served() {
    for address in ["0.0.0.0:0", "192.0.2.1:8080", "[::]:0"] {
        let error = listen(address.parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, ServeError::NotLoopback { .. }), "{error}");
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
    }
    let taken = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = listen(address).await.unwrap_err();
    assert!(matches!(error, ServeError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
