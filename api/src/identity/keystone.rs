//! Mode `keystone`: tokens are validated by Keystone v3 (Identity API v3, "Validate and show information for token").
//!
//! We ask as a service user, whose own token is got by password and got again when Keystone no longer takes it. A valid
//! token is not asked about again for `cache`, which therefore bounds how long a revoked one still opens; past that it is,
//! and holds on until its own expiry only if Keystone does not answer. While Keystone is away ([`away`]) it is asked one
//! question at a time, two seconds after the last one failed, and nobody waits for that whose token is known. A token is
//! a stranger's text: what Keystone says to it, or to its length, is about that token and never about Keystone. So when a
//! question for a token ends without a verdict, the same question for our own token tells which of both it is. Answers are
//! bounded in size, questions in time. Redirects are not followed: the service token goes to the configured host only.
//!
//! Roles count where they were given: those of a token for a domain are about that domain and open nothing here, and
//! where Keystone says that a project is not the admin project, roles in it open no other tenant.

mod away;

use super::remembered::{FOR_EVER, Good, NotGood, Remembered, Turn};
use super::wall::{WallClock, parse_utc};
use super::{Denied, Identity, Verified, Verifier};
use crate::http_client::{Endpoint, EndpointError};
use crate::peer::Peer;
use crate::watched::{FileError, Rights, read};
use away::{Away, Leave};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Questions to Keystone at a time.
const TURNS: usize = 8;
/// When clients are told to ask again who cannot be let in, seconds.
const RETRY_AFTER_S: u32 = 5;
/// What they are told while Keystone is away.
const AWAY: Denied = Denied::Unavailable { why: "Keystone does not answer", retry_after_s: RETRY_AFTER_S };
/// What they are told where Keystone says nothing that can be understood.
const NO_VERDICT: Denied =
    Denied::Unavailable { why: "Keystone gives no verdict on this token", retry_after_s: RETRY_AFTER_S };
/// Pause between two lines of the log about tokens that could not be checked while others can.
const DOUBT_PAUSE: Duration = Duration::from_secs(60);
/// Longest answer read, bytes; without its catalogue a token has about 2 KB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Where Keystone is and as whom we ask.
#[derive(Clone, Debug)]
pub struct KeystoneConfig {
    /// `http://HOST[:PORT][/PATH]` or `https://…`; `/v3` at its end may be left out.
    pub url: String,
    /// The service user.
    pub user: String,
    /// Its domain's name.
    pub user_domain: String,
    /// A file with its password, 0600; read again whenever the password is needed.
    pub password_file: PathBuf,
    /// What rights that file must have.
    pub password_rights: Rights,
    /// The project in which it has a role that may validate tokens.
    pub project: String,
    /// That project's domain's name.
    pub project_domain: String,
    /// A file of the certificates (PEM) that vouch for Keystone's, for `https`.
    pub ca: PathBuf,
    /// How long a valid token is not asked about again.
    pub cache: Duration,
    /// How long a token may take to be validated.
    pub timeout: Duration,
}

/// Why Keystone cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum KeystoneError {
    /// The URL or its certificates.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The password's file.
    #[error(transparent)]
    Password(#[from] FileError),
}

/// What went wrong with a question.
enum Trouble {
    /// The token is nobody's.
    Invalid,
    /// No verdict on this token, and only on this one.
    Doubt(String),
    /// The question failed, by the token or by Keystone.
    Unanswered(String),
    /// Keystone is away, or does not take us.
    Away(String),
}

impl Trouble {
    fn unanswered(status: StatusCode) -> Trouble {
        Trouble::Unanswered(format!("it answers {status} to the question for a token"))
    }
}

impl From<EndpointError> for Trouble {
    fn from(error: EndpointError) -> Trouble {
        Trouble::Away(error.to_string())
    }
}

/// The verifier that asks Keystone.
pub struct Keystone {
    remembered: Remembered,
    asker: Arc<Asker>,
}

/// Who asks.
struct Asker {
    config: KeystoneConfig,
    endpoint: Endpoint,
    clock: WallClock,
    /// Our own token.
    service: tokio::sync::Mutex<Option<HeaderValue>>,
    away: Away,
    /// Until then nothing is said of tokens that could not be checked.
    quiet_until: Mutex<Option<Instant>>,
}

#[derive(Deserialize)]
struct Body {
    token: TokenView,
}

#[derive(Deserialize)]
struct TokenView {
    user: IdView,
    project: Option<IdView>,
    domain: Option<IgnoredAny>,
    is_admin_project: Option<bool>,
    #[serde(default)]
    roles: Vec<RoleView>,
    expires_at: String,
}

#[derive(Deserialize)]
struct IdView {
    id: String,
}

#[derive(Deserialize)]
struct RoleView {
    name: String,
}

impl Keystone {
    /// A verifier that has not asked yet; Keystone need not be there.
    ///
    /// # Errors
    /// [`KeystoneError`].
    pub fn new(config: KeystoneConfig, clock: WallClock) -> Result<Keystone, KeystoneError> {
        read(&config.password_file, config.password_rights)?;
        let mut endpoint = Endpoint::new(&config.url, &config.ca)?;
        if !endpoint.base().ends_with("/v3") {
            endpoint.descend("/v3");
        }
        let asker = Asker {
            config,
            endpoint,
            clock,
            service: tokio::sync::Mutex::default(),
            away: Away::default(),
            quiet_until: Mutex::default(),
        };
        Ok(Keystone { remembered: Remembered::new(TURNS), asker: Arc::new(asker) })
    }

    async fn check(&self, token: &str, is_known: bool) -> Result<Good, NotGood> {
        match self.asker.away.leave() {
            Leave::No => Err(NotGood::Away(AWAY)),
            // Who is known goes on: what the answer says of the token is asked again once there are answers.
            Leave::Probe(probe) if is_known => {
                let (asker, token) = (self.asker.clone(), token.to_owned());
                tokio::spawn(async move {
                    let _probe = probe;
                    let _ = asker.check(&token).await;
                });
                Err(NotGood::Away(AWAY))
            }
            Leave::Yes | Leave::Probe(_) => self.asker.check(token).await,
        }
    }
}

impl Asker {
    async fn check(&self, token: &str) -> Result<Good, NotGood> {
        let answer = timeout(self.config.timeout, self.ask(token)).await;
        let answer = answer.unwrap_or_else(|_| Err(Trouble::Away(format!("no answer in {:?}", self.config.timeout))));
        let is_away = matches!(answer, Err(Trouble::Away(_)));
        let was_away = self.away.note(is_away);
        if was_away && !is_away {
            tracing::info!(url = self.config.url, "Keystone answers again");
        }
        match answer {
            Ok(good) => Ok(good),
            Err(Trouble::Invalid) => Err(NotGood::Invalid),
            Err(Trouble::Doubt(error) | Trouble::Unanswered(error)) => {
                let mut quiet_until = self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
                if quiet_until.is_none_or(|until| until <= Instant::now()) {
                    *quiet_until = Some(Instant::now() + DOUBT_PAUSE);
                    tracing::warn!(url = self.config.url, error, "Keystone gives no verdict on a token");
                }
                Err(NotGood::Doubt(NO_VERDICT))
            }
            Err(Trouble::Away(error)) => {
                // Said once; asked again every two seconds.
                if !was_away {
                    tracing::error!(url = self.config.url, error, "Keystone cannot be asked; known tokens hold");
                }
                Err(NotGood::Away(AWAY))
            }
        }
    }

    async fn ask(&self, token: &str) -> Result<Good, Trouble> {
        let token = HeaderValue::from_str(token).map_err(|_| Trouble::Invalid)?;
        match self.ask_about(&token).await {
            Err(Trouble::Unanswered(error)) => match self.question(None).await {
                Ok(answer) if answer.status() == StatusCode::OK => Err(Trouble::Doubt(error)),
                Ok(_) | Err(Trouble::Unanswered(_)) => Err(Trouble::Away(error)),
                Err(trouble) => Err(trouble),
            },
            outcome => outcome,
        }
    }

    /// Asks about a token, or our own, by a service token that Keystone takes.
    async fn question(&self, token: Option<&HeaderValue>) -> Result<Response<Vec<u8>>, Trouble> {
        let ours = self.service_token(None).await?;
        let answer = self.validate(token.unwrap_or(&ours), &ours).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let ours = self.service_token(Some(&ours)).await?;
        self.validate(token.unwrap_or(&ours), &ours).await
    }

    async fn ask_about(&self, token: &HeaderValue) -> Result<Good, Trouble> {
        let answer = self.question(Some(token)).await?;
        match answer.status() {
            StatusCode::OK => self.read_token(answer.body()),
            // 404: no such token, expired or revoked. 400: it cannot be one. The others: it is too long to be one.
            StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Err(Trouble::Invalid),
            status => Err(Trouble::unanswered(status)),
        }
    }

    fn read_token(&self, body: &[u8]) -> Result<Good, Trouble> {
        let body: Body = serde_json::from_slice(body)
            .map_err(|error| Trouble::Doubt(format!("its description of a token cannot be read: {error}")))?;
        let TokenView { user, project, domain, is_admin_project, mut roles, expires_at } = body.token;
        if domain.is_some() {
            roles.clear();
        }
        let expires = parse_utc(&expires_at)
            .ok_or_else(|| Trouble::Doubt(format!("a token that expires at {expires_at:?} cannot be understood")))?;
        let left = u64::try_from(expires - (self.clock)()).ok().filter(|left| *left > 0).ok_or(Trouble::Invalid)?;
        let now = Instant::now();
        let expires = now + Duration::from_secs(left).min(FOR_EVER);
        let identity = Identity {
            user: user.id.into(),
            project: project.map(|project| project.id.into()),
            roles: roles.into_iter().map(|role| role.name.into()).collect(),
            is_confined: is_admin_project == Some(false),
        };
        Ok(Good { identity: Arc::new(identity), fresh_until: expires.min(now + self.config.cache), expires })
    }

    async fn validate(&self, token: &HeaderValue, service: &HeaderValue) -> Result<Response<Vec<u8>>, Trouble> {
        let mut request = self.endpoint.request(Method::GET, "/auth/tokens?nocatalog", Vec::new());
        request.headers_mut().insert("x-auth-token", service.clone());
        request.headers_mut().insert("x-subject-token", token.clone());
        let answer = self.endpoint.send(request, ANSWER_BYTES_MAX).await.map_err(|error| match error {
            EndpointError::Http(_) | EndpointError::Answer => Trouble::Unanswered(error.to_string()),
            unreachable => unreachable.into(),
        })?;
        if answer.status().is_server_error() {
            return Err(Trouble::unanswered(answer.status()));
        }
        Ok(answer)
    }

    /// Our own token; a new one if there is none or Keystone did not take `refused`.
    async fn service_token(&self, refused: Option<&HeaderValue>) -> Result<HeaderValue, Trouble> {
        let mut service = self.service.lock().await;
        if let Some(token) = service.as_ref().filter(|token| Some(*token) != refused) {
            return Ok(token.clone());
        }
        *service = None;
        let answer = self.endpoint.send(self.authentication()?, ANSWER_BYTES_MAX).await?;
        let token = answer.headers().get("x-subject-token").filter(|_| answer.status() == StatusCode::CREATED);
        let mut token = token.cloned().ok_or_else(|| {
            Trouble::Away(format!("it answers {} to the service user {:?}", answer.status(), self.config.user))
        })?;
        token.set_sensitive(true);
        *service = Some(token.clone());
        Ok(token)
    }

    /// The request for our own token (Identity API v3, "Password authentication with scoped authorization").
    fn authentication(&self) -> Result<Request<Vec<u8>>, Trouble> {
        let KeystoneConfig { user, user_domain, password_file, password_rights, project, project_domain, .. } =
            &self.config;
        let password = read(password_file, *password_rights).map_err(|error| Trouble::Away(error.to_string()))?;
        let password = password.trim_end_matches(['\r', '\n']);
        let body = json!({"auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"name": user, "domain": {"name": user_domain}, "password": password}},
            },
            "scope": {"project": {"name": project, "domain": {"name": project_domain}}},
        }});
        let mut request = self.endpoint.request(Method::POST, "/auth/tokens?nocatalog", body.to_string().into_bytes());
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(request)
    }
}

impl Verifier for Keystone {
    fn verify<'a>(&'a self, token: &'a str, peer: Peer) -> Pin<Box<dyn Future<Output = Verified> + Send + 'a>> {
        Box::pin(async move {
            // Before there is a queue to wait in: it is for questions, and there will be none.
            if self.asker.away.is_left_in_peace() {
                return self.remembered.unasked(token, AWAY);
            }
            let check = async |turn: Turn| self.check(token, turn.is_known()).await;
            self.remembered.verify((token, peer), None, self.remembered.generation(), check).await
        })
    }

    fn challenge(&self) -> HeaderValue {
        let challenge = format!("Keystone uri=\"{}\"", self.asker.config.url);
        HeaderValue::try_from(challenge).unwrap_or(HeaderValue::from_static("Keystone"))
    }
}
