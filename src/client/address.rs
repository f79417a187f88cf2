//! Where a node answers.

use super::ClientError;
use reqwest::Url;
use std::fmt;
use std::str::FromStr;

/// The root URL of a node, `http://HOST:PORT/`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address(Url);

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Address {
    type Err = ClientError;

    fn from_str(given: &str) -> Result<Self, ClientError> {
        let wrong = |why| ClientError::Address { given: given.chars().take(200).collect(), why };
        let text = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
        let url = Url::parse(&text).map_err(|_| wrong("not a URL"))?;
        match url.scheme() {
            "http" => {}
            "https" => return Err(wrong("nodes speak plain HTTP on loopback; TLS comes with access control")),
            _ => return Err(wrong("not http")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("nodes take no user name or password"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("only host and port, without a path"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("no host"));
        }
        Ok(Self(url))
    }
}

impl Address {
    /// `http://HOST:PORT/`.
    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The URL of something at this node. Segments and values are encoded here, so they may hold any character.
    pub(super) fn at(&self, segments: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_suffice_and_anything_more_is_refused() {
        for given in ["127.0.0.1:8001", "http://127.0.0.1:8001", "http://127.0.0.1:8001/"] {
            assert_eq!(given.parse::<Address>().unwrap().as_str(), "http://127.0.0.1:8001/");
        }
        assert_eq!("localhost:1".parse::<Address>().unwrap().as_str(), "http://localhost:1/");
        assert_eq!("[::1]:1".parse::<Address>().unwrap().as_str(), "http://[::1]:1/");
        for given in [
            "",
            "http://",
            "https://127.0.0.1:1",
            "ftp://127.0.0.1",
            "http://user@127.0.0.1:1",
            "http://:pass@127.0.0.1:1",
            "http://127.0.0.1:1/v1",
            "http://127.0.0.1:1/?a=b",
            "http://127.0.0.1:1/#a",
            "127.0.0.1:99999",
        ] {
            assert!(given.parse::<Address>().is_err(), "{given}");
        }
    }

    #[test]
    fn any_name_can_stand_in_a_path() {
        let node: Address = "127.0.0.1:1".parse().unwrap();
        let url = node.at(&["v1", "config", "routing/strategy?#%"], &[("a", "b&c=d"), ("e", "ü")]);
        assert_eq!(url.as_str(), "http://127.0.0.1:1/v1/config/routing%2Fstrategy%3F%23%25?a=b%26c%3Dd&e=%C3%BC");
    }
}
