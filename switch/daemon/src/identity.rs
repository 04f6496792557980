//! How the API's clients are known: the settings' words made into what the API's server takes.

use crate::settings::{self, IdentityMode, Settings, SettingsError};
use api::http_client::EndpointError;
use api::identity::keystone::{Keystone, KeystoneConfig, KeystoneError};
use api::identity::tokens::Tokens;
use api::identity::{Mode, Verifier};
use api::policy::LivePolicy;
use api::watched::Rights;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time of day, seconds since 1970 UTC.
pub(crate) fn wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The rights that secrets must have where a command looks after the files of a daemon: root's commands want them to be of
/// the user whose the state is, which is the user that the daemon runs as.
pub(crate) fn rights_of_secrets(settings: &Settings) -> Rights {
    match owner_of_secrets(settings) {
        owner if owner == rustix::process::geteuid().as_raw() => Rights::OwnerOnly,
        owner => Rights::OwnerOnlyOf(owner),
    }
}

/// That user.
pub(crate) fn owner_of_secrets(settings: &Settings) -> u32 {
    let user = rustix::process::geteuid();
    let daemon = std::fs::metadata(&settings.state_dir).map(|found| found.uid());
    daemon.ok().filter(|_| user.is_root()).unwrap_or(user.as_raw())
}

/// How clients are known, with the files of the settings read; secrets must have `rights`.
///
/// # Errors
/// A file that cannot be used, with the line of the setting that names it.
pub(crate) fn mode(settings: &Settings, rights: Rights) -> Result<Mode, SettingsError> {
    let identity = &settings.identity;
    let policy = match identity.policy.as_str() {
        "" => LivePolicy::default(),
        path => LivePolicy::open(Path::new(path)).map_err(|error| settings.fault("identity", "policy", error))?,
    };
    let verifier: Arc<dyn Verifier> = match identity.mode {
        IdentityMode::Noauth => return Ok(Mode::NoAuth),
        IdentityMode::Tokens => Arc::new(
            Tokens::open(&identity.tokens, rights, wall_clock)
                .map_err(|error| settings.fault("identity", "tokens", error))?,
        ),
        IdentityMode::Keystone => {
            Arc::new(Keystone::new(keystone_config(settings, rights), wall_clock).map_err(|error| match error {
                KeystoneError::Endpoint(error @ EndpointError::Certificates { .. }) => {
                    settings.fault("keystone", "ca", error)
                }
                KeystoneError::Endpoint(error) => settings.fault("keystone", "url", error),
                KeystoneError::Password(error) => settings.fault("keystone", "password_file", error),
            })?)
        }
    };
    Ok(Mode::Tokens { verifier, policy: Arc::new(policy) })
}

fn keystone_config(settings: &Settings, password_rights: Rights) -> KeystoneConfig {
    let keystone = settings.keystone.clone();
    KeystoneConfig {
        url: keystone.url,
        user: keystone.user,
        user_domain: keystone.user_domain,
        password_file: keystone.password_file,
        password_rights,
        project: keystone.project,
        project_domain: keystone.project_domain,
        ca: keystone.ca,
        cache: Duration::from_secs(keystone.cache_s.into()),
        timeout: Duration::from_secs(keystone.timeout_s.into()),
    }
}

impl From<settings::Claim> for api::claim::Claim {
    fn from(claim: settings::Claim) -> api::claim::Claim {
        match claim {
            settings::Claim::Any => api::claim::Claim::Any,
            settings::Claim::Registered => api::claim::Claim::Registered,
        }
    }
}
