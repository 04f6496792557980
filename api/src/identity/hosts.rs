//! Who may ask: the `noauth` mode. Pure.
//!
//! Without tokens the only fence is that the API is on loopback. A browser on the same machine is inside that fence and
//! obeys any web page, by a name that resolves to 127.0.0.1 or by a cross-site form. So the request must name a host of
//! ours, and a page that sends it must come from that same host.

use axum::http::{HeaderMap, StatusCode, Uri, Version, header, uri::Authority};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Why a request is refused before anything looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// HTTP/1.1 without a Host, or any with several or an unreadable one (RFC 9112 section 3.2).
    #[error("The request must have one valid Host header.")]
    BadHost,
    /// HTTP/1.0 without a Host, which may be anybody's.
    #[error("The request has no Host header.")]
    NoHost,
    /// A host that is neither loopback nor configured.
    #[error("The Host of the request is neither loopback nor listed in api.hosts.")]
    ForeignHost,
    /// A page of another host sent it.
    #[error("The Origin of the request differs from its Host.")]
    ForeignOrigin,
}

impl Refused {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Refused::BadHost => StatusCode::BAD_REQUEST,
            Refused::NoHost | Refused::ForeignHost | Refused::ForeignOrigin => StatusCode::FORBIDDEN,
        }
    }
}

/// The hosts by which the API may be called besides loopback: `name` for any port, `name:port` for that one.
#[derive(Clone, Default, Debug)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// These hosts; case does not matter.
    pub fn new(hosts: impl IntoIterator<Item = String>) -> Hosts {
        Hosts(hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    /// Whether a request may come in, and by which host it was called. Where clients are known by tokens that no web page
    /// has, any one valid host will do.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(
        &self,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
        has_identity: bool,
    ) -> Result<Authority, Refused> {
        let host = called_host(version, uri, headers)?;
        if has_identity {
            return Ok(host);
        }
        if !is_loopback(&host) && !self.lists(&host) {
            return Err(Refused::ForeignHost);
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        if origins.any(|origin| origin.to_str().ok().is_none_or(|origin| !is_same(origin, &host))) {
            return Err(Refused::ForeignOrigin);
        }
        Ok(host)
    }

    fn lists(&self, host: &Authority) -> bool {
        let (name, full) = (host.host().to_ascii_lowercase(), host.as_str().to_ascii_lowercase());
        self.0.iter().any(|known| *known == name || *known == full)
    }
}

/// The one host a request names: in its target if that is absolute (RFC 9112 section 3.2.2), else in its Host header.
fn called_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Authority, Refused> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(Authority::try_from(host.as_bytes()).map_err(|_| Refused::BadHost)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Refused::BadHost),
    };
    let host = match (uri.authority(), host) {
        (Some(target), _) => target.clone(),
        (None, Some(host)) => host,
        (None, None) if version == Version::HTTP_10 => return Err(Refused::NoHost),
        (None, None) => return Err(Refused::BadHost),
    };
    // `user@host` is valid in an authority but not in a Host, and made to deceive.
    if host.as_str().contains('@') { Err(Refused::BadHost) } else { Ok(host) }
}

fn is_loopback(host: &Authority) -> bool {
    let name = host.host();
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || bracketed.and_then(|name| name.parse::<Ipv6Addr>().ok()).is_some_and(|address| address.is_loopback())
}

/// Whether an origin (`scheme://host[:port]`) is the host called. A missing port is the scheme's on both sides, because
/// a Host header does not tell the scheme by which a proxy before us was called.
fn is_same(origin: &str, host: &Authority) -> bool {
    let Some((scheme, origin)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let Ok(origin) = origin.parse::<Authority>() else { return false };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
    origin.host().eq_ignore_ascii_case(host.host()) && port(&origin) == port(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, origin: Option<&str>) -> Result<Authority, Refused> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        let hosts = Hosts::new(["Cloud.example".to_owned(), "only.example:9696".to_owned()]);
        hosts.check(Version::HTTP_11, &Uri::from_static("/v1.1"), &headers, false)
    }

    #[test]
    fn loopback_and_listed_hosts_may_call_and_others_may_not() {
        for host in [
            "127.0.0.1:9696",
            "127.8.9.1",
            "localhost",
            "LOCALHOST:1",
            "[::1]:9696",
            "cloud.example:80",
            "only.example:9696",
        ] {
            assert!(check(host, None).is_ok(), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "10.0.0.1:9696", "only.example", "[fe80::1]", "127.0.0.1."]
        {
            assert_eq!(check(host, None), Err(Refused::ForeignHost), "{host}");
        }
        for host in ["", "a b", "user@localhost", "localhost/x"] {
            assert_eq!(check(host, None), Err(Refused::BadHost), "{host:?}");
        }
    }

    #[test]
    fn a_page_may_call_only_the_host_it_came_from() {
        assert!(check("localhost:9696", Some("http://localhost:9696")).is_ok());
        assert!(check("cloud.example", Some("https://cloud.example")).is_ok());
        for origin in
            ["http://evil.example", "http://localhost", "http://localhost:9697", "null", "file://", "localhost:9696"]
        {
            assert_eq!(check("localhost:9696", Some(origin)), Err(Refused::ForeignOrigin), "{origin}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_counts_and_a_missing_or_double_host_is_wrong() {
        let hosts = Hosts::default();
        let mut headers = HeaderMap::new();
        assert_eq!(hosts.check(Version::HTTP_11, &Uri::from_static("/"), &headers, false), Err(Refused::BadHost));
        assert_eq!(hosts.check(Version::HTTP_10, &Uri::from_static("/"), &headers, false), Err(Refused::NoHost));
        headers.insert(header::HOST, "localhost".parse().unwrap());
        let absolute = Uri::from_static("http://evil.example/");
        assert_eq!(hosts.check(Version::HTTP_11, &absolute, &headers, false), Err(Refused::ForeignHost));
        headers.append(header::HOST, "localhost".parse().unwrap());
        assert_eq!(hosts.check(Version::HTTP_11, &Uri::from_static("/"), &headers, false), Err(Refused::BadHost));
    }
}
