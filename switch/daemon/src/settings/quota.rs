//! `[quota]`: what tenants may have, and the file of those that may have more or less.

use super::{Driver, IdentityMode, RawQuota, Settings, SettingsError, Source, check_path};
use api::quota::{Limit, NETWORKS_DEFAULT, PORTS_DEFAULT, Quota, Quotas};
use serde::Serialize;
use std::path::Path;

/// `[quota]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct QuotaSettings {
    /// What a tenant may have.
    #[serde(flatten)]
    pub(crate) all: Quota,
    /// The file of tenants that may have more or less; empty: none.
    pub(crate) tenants: String,
}

impl QuotaSettings {
    /// Where nothing is said, tenants are bounded if it is known who they are: without identity anybody can be as many as he likes.
    pub(super) fn resolve(
        raw: RawQuota,
        identity: IdentityMode,
        source: &Source,
    ) -> Result<QuotaSettings, SettingsError> {
        let default = match identity {
            IdentityMode::Noauth => Quota::UNLIMITED,
            _ => Quota { networks: NETWORKS_DEFAULT, ports: PORTS_DEFAULT },
        };
        let limit = |key: &str, number: Option<i64>, default: Limit| match number {
            None => Ok(default),
            Some(number) => Limit::try_from(number).map_err(|message| source.fault("quota", key, message)),
        };
        let tenants = raw.tenants.unwrap_or_default();
        if !tenants.is_empty() {
            check_path(Path::new(&tenants)).map_err(|message| source.fault("quota", "tenants", message))?;
        }
        let all = Quota {
            networks: limit("networks", raw.networks, default.networks)?,
            ports: limit("ports", raw.ports, default.ports)?,
        };
        Ok(QuotaSettings { all, tenants })
    }
}

impl Settings {
    /// What tenants may have, with the file of the settings read.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub(crate) fn quotas(&self) -> Result<Quotas, SettingsError> {
        // Neither records alone nor recordings of a service that had no quotas are to be bounded by them.
        if self.plugin.driver == Driver::Fake || self.api.strict_essex {
            return Ok(Quotas::for_all(Quota::UNLIMITED));
        }
        match self.quota.tenants.as_str() {
            "" => Ok(Quotas::for_all(self.quota.all)),
            path => {
                Quotas::open(self.quota.all, Path::new(path)).map_err(|error| self.fault("quota", "tenants", error))
            }
        }
    }
}
