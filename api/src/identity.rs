//! Who asks: decided once, at the border, before anything else looks at a request.
//!
//! In mode `noauth` everybody is believed who gets as far as the listener, and [`Hosts`] keeps web pages out. Otherwise a
//! request carries a token, a [`Verifier`] tells whose it is, and the tenant of the URL must be the token's project: 401
//! without a valid token, 403 below another tenant's URL whatever exists there (the original left both
//! to the middleware in front of the API, so their bodies are framework pages). The version list is for everybody.
//!
//! What makes it hard is what a stranger may make us do: each token not seen before costs a verification. Verifiers
//! therefore bound how many run and wait at a time, and remember tokens, good and bad, only by a keyed hash.

mod hosts;
pub mod keystone;
mod remembered;
pub mod tokens;
pub mod wall;

pub use hosts::{Hosts, Refused};

use crate::model::Text;
use crate::peer::Peer;
use crate::policy::{Action, LivePolicy, Policy};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

/// Longest token looked at, bytes. A Fernet one has about 250; a longer one than this would not get past the limits that
/// web servers in front of Keystone have for a header.
pub const TOKEN_BYTES_MAX: usize = 4 << 10;
/// The headers that carry a token; the second is of the original middleware's time.
const TOKEN_HEADERS: [&str; 2] = ["x-auth-token", "x-storage-token"];

/// Somebody whose token is valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The user, as logs tell it: an id where there is one.
    pub user: Text,
    /// The project the token is for, which is the tenant of its URLs; `None` for a token without one.
    pub project: Option<Text>,
    /// Names of the user's roles in that project, in any case.
    pub roles: Vec<Text>,
    /// Whether no role opens other tenants: the roles are for this project only.
    pub is_confined: bool,
}

/// Why a token got nobody in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// Nobody's, or no longer anybody's.
    #[error("The token is not valid.")]
    Invalid,
    /// It cannot be told now; the token may be valid.
    #[error("Tokens cannot be checked now: {why}.")]
    Unavailable {
        /// What is wrong, for the client.
        why: &'static str,
        /// When to ask again, seconds.
        retry_after_s: u32,
    },
}

/// The outcome of a verification.
pub type Verified = Result<Arc<Identity>, Denied>;

/// Tells whose a token is.
pub trait Verifier: Send + Sync {
    /// Whose it is. `token` is not empty and has at most [`TOKEN_BYTES_MAX`] bytes; `peer` shows it.
    fn verify<'a>(&'a self, token: &'a str, peer: Peer) -> Pin<Box<dyn Future<Output = Verified> + Send + 'a>>;

    /// What a 401 says in `WWW-Authenticate` (RFC 9110 section 11.6.1).
    fn challenge(&self) -> HeaderValue;
}

/// How clients are known.
#[derive(Clone, Default)]
pub enum Mode {
    /// Not at all.
    #[default]
    NoAuth,
    /// By tokens.
    Tokens {
        /// Tells whose a token is.
        verifier: Arc<dyn Verifier>,
        /// Tells what they may do.
        policy: Arc<LivePolicy>,
    },
}

impl fmt::Debug for Mode {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Mode::NoAuth => "NoAuth",
            Mode::Tokens { .. } => "Tokens",
        })
    }
}

/// Who makes a request, for as long as it lasts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Anybody, who may do anything: mode `noauth`.
    Anyone,
    /// Somebody, under the policy of the moment the request came.
    Known {
        /// Who.
        identity: Arc<Identity>,
        /// What they may do.
        policy: Arc<Policy>,
    },
}

impl Caller {
    /// Whether the policy lets the caller do this, within a tenant it may enter.
    pub fn may(&self, action: Action) -> bool {
        match self {
            Caller::Anyone => true,
            Caller::Known { identity, policy } => policy.lets(identity, action),
        }
    }

    /// Whether the caller may use this tenant's URLs: its own project's, compared byte for byte, or any.
    pub fn may_enter(&self, tenant: &str) -> bool {
        match self {
            Caller::Anyone => true,
            Caller::Known { identity, .. } => {
                identity.project.as_deref() == Some(tenant) || self.may(Action::AnyTenant)
            }
        }
    }
}

/// Why a request is not let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// 401: no valid token; the challenge says what would be one.
    Unauthenticated(HeaderValue),
    /// 403: a valid token of another tenant. It is told whose, for the log.
    ForeignTenant(Caller),
    /// 503: it cannot be told whose the token is.
    Unavailable(Denied),
}

impl Refusal {
    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Refusal::ForeignTenant(_) => StatusCode::FORBIDDEN,
            Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// One sentence for the client. It is the same for a token that never was and one that expired.
    pub fn message(&self) -> String {
        match self {
            Refusal::Unauthenticated(_) => "A valid token is required in the header X-Auth-Token.".to_owned(),
            Refusal::ForeignTenant(_) => "The token is not for the tenant of this address.".to_owned(),
            Refusal::Unavailable(denied) => denied.to_string(),
        }
    }

    /// What stands in the answer's head besides.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Refusal::Unauthenticated(challenge) => {
                headers.insert(header::WWW_AUTHENTICATE, challenge.clone());
            }
            Refusal::Unavailable(Denied::Unavailable { retry_after_s, .. }) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_s));
            }
            Refusal::ForeignTenant(_) | Refusal::Unavailable(Denied::Invalid) => {}
        }
        headers
    }
}

impl Mode {
    /// Whether clients are known at all.
    pub fn is_on(&self) -> bool {
        matches!(self, Mode::Tokens { .. })
    }

    /// Who makes a request with these headers below this tenant's URL, `None`: one of no tenant; it came from `peer`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn admit(&self, headers: &HeaderMap, tenant: Option<&str>, peer: Peer) -> Result<Caller, Refusal> {
        let Mode::Tokens { verifier, policy } = self else { return Ok(Caller::Anyone) };
        let refused = || Refusal::Unauthenticated(verifier.challenge());
        let token = token_of(headers).ok_or_else(refused)?;
        let identity = verifier.verify(token, peer).await.map_err(|denied| match denied {
            Denied::Invalid => refused(),
            denied @ Denied::Unavailable { .. } => Refusal::Unavailable(denied),
        })?;
        let caller = Caller::Known { identity, policy: policy.now() };
        if tenant.is_some_and(|tenant| !caller.may_enter(tenant)) {
            return Err(Refusal::ForeignTenant(caller));
        }
        Ok(caller)
    }
}

/// The one token of a request; several are none, because whoever sends two may have had one added.
fn token_of(headers: &HeaderMap) -> Option<&str> {
    let mut tokens = TOKEN_HEADERS.iter().flat_map(|name| headers.get_all(*name));
    let token = tokens.next()?.to_str().ok()?.trim();
    let is_one = tokens.all(|other| other.to_str().is_ok_and(|other| other.trim() == token));
    (is_one && !token.is_empty() && token.len() <= TOKEN_BYTES_MAX).then_some(token)
}

/// The tenant of a decoded path below a version: the segment behind the first `tenants`. The router finds the tenant at
/// the same place or finds nothing.
pub fn tenant_of(path: &str) -> Option<&str> {
    let mut segments = path.split('/').skip_while(|segment| *segment != "tenants");
    segments.nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A verifier that knows some tokens by heart.
    struct Known(HashMap<&'static str, Verified>);

    impl Verifier for Known {
        fn verify<'a>(&'a self, token: &'a str, _peer: Peer) -> Pin<Box<dyn Future<Output = Verified> + Send + 'a>> {
            Box::pin(async move { self.0.get(token).cloned().unwrap_or(Err(Denied::Invalid)) })
        }

        fn challenge(&self) -> HeaderValue {
            HeaderValue::from_static("Test")
        }
    }

    fn mode() -> Mode {
        let of = |project: Option<&str>, role: &str| {
            let project = project.map(Text::from);
            Ok(Arc::new(Identity { user: "somebody".into(), project, roles: vec![role.into()], is_confined: false }))
        };
        let down = Err(Denied::Unavailable { why: "it rains", retry_after_s: 3 });
        let known = [
            ("red", of(Some("red-id"), "member")),
            ("admin", of(Some("ops"), "Admin")),
            ("unscoped", of(None, "member")),
            ("cloud-admin", of(None, "admin")),
            ("rain", down),
        ];
        Mode::Tokens { verifier: Arc::new(Known(known.into())), policy: Arc::default() }
    }

    fn admit(tokens: &[&str], tenant: Option<&str>) -> Result<Caller, u16> {
        let mut headers = HeaderMap::new();
        for (at, token) in tokens.iter().enumerate() {
            headers.append(TOKEN_HEADERS[at % 2], HeaderValue::from_bytes(token.as_bytes()).unwrap());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(mode().admit(&headers, tenant, Peer::LOOPBACK)).map_err(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn a_token_opens_its_own_project_and_admin_opens_all() {
        assert!(admit(&["red"], Some("red-id")).is_ok());
        assert_eq!(admit(&["red"], Some("blue-id")).unwrap_err(), 403);
        assert_eq!(admit(&["red"], Some("RED-ID")).unwrap_err(), 403, "ids are compared byte for byte");
        assert_eq!(admit(&["red"], Some("")).unwrap_err(), 403);
        assert!(admit(&["red"], None).is_ok());
        for tenant in ["ops", "red-id", "anything"] {
            assert!(admit(&["admin"], Some(tenant)).is_ok(), "{tenant}");
            assert!(admit(&["cloud-admin"], Some(tenant)).is_ok(), "{tenant}");
        }
        assert_eq!(admit(&["unscoped"], Some("red-id")).unwrap_err(), 403);
    }

    #[test]
    fn no_token_a_bad_one_and_two_are_401_and_doubt_is_503() {
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for tokens in [&[][..], &[""], &["nobody's"], &["r\u{e9}d"], &["red", "admin"], &["red", "nobody's"], &[&long]]
        {
            assert_eq!(admit(tokens, Some("red-id")).unwrap_err(), 401, "{tokens:?}");
            assert_eq!(admit(tokens, Some("blue-id")).unwrap_err(), 401, "{tokens:?}");
        }
        assert!(admit(&["red", "red"], Some("red-id")).is_ok(), "the same in both headers is one");
        assert_eq!(admit(&["rain"], Some("red-id")).unwrap_err(), 503);
    }

    #[test]
    fn the_tenant_of_a_path_stands_where_the_router_looks() {
        for (path, tenant) in [
            ("/tenants/red/networks", Some("red")),
            ("//tenants/red/networks.json", Some("red")),
            ("/tenants/tenants/networks", Some("tenants")),
            ("/extensions/csco/tenants/red/qoss", Some("red")),
            ("/tenants/", Some("")),
            ("/tenants", None),
            ("/extensions", None),
            ("", None),
        ] {
            assert_eq!(tenant_of(path), tenant, "{path}");
        }
    }
}
