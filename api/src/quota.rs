//! How many networks and ports a tenant may have. Data: limits for all, and a file of others for tenants by name.
//!
//! A creation is checked in the same turn as it is planned ([`crate::plugins::recorded`]), against the state that it will be
//! committed on, so that those who create at the same time get no more than one after another. The model keeps the counts,
//! and a check looks at nothing else. A limit below what a tenant has takes nothing away: it gets no more until it has less.
//! What an operator imports is not checked.

use crate::model::{Model, Text};
use crate::plugin::OverQuota;
use crate::watched::{FileError, Rights, Watched};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Networks a tenant may have where nothing else is said: a hundredth of what one host carries.
pub const NETWORKS_DEFAULT: Limit = Limit::at_most(1_000);
/// Ports a tenant may have on all its networks where nothing else is said.
pub const PORTS_DEFAULT: Limit = Limit::at_most(10_000);
/// What stands for "no limit", as in Quantum v2.0's quotas.
const UNLIMITED: i64 = -1;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// A tenant's networks.
    Network,
    /// The ports on them.
    Port,
}

impl fmt::Display for Resource {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Resource::Network => "network",
            Resource::Port => "port",
        })
    }
}

/// How many there may be; written as a number, `-1` for any number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit(Option<usize>);

impl Limit {
    /// Any number.
    pub const NONE: Limit = Limit(None);

    /// So many.
    pub const fn at_most(count: usize) -> Limit {
        Limit(Some(count))
    }

    /// How many; `None`: any number.
    pub fn count(self) -> Option<usize> {
        self.0
    }
}

impl TryFrom<i64> for Limit {
    type Error = String;

    fn try_from(number: i64) -> Result<Limit, String> {
        match usize::try_from(number) {
            Ok(count) => Ok(Limit::at_most(count)),
            Err(_) if number == UNLIMITED => Ok(Limit::NONE),
            Err(_) => Err(format!("{number} is no limit: it must be 0 or more, or -1 for none")),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Limit, D::Error> {
        i64::deserialize(from)?.try_into().map_err(de::Error::custom)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(self.0.map_or(UNLIMITED, |count| i64::try_from(count).unwrap_or(i64::MAX)))
    }
}

/// What one tenant may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Quota {
    /// Networks.
    pub networks: Limit,
    /// Ports on all its networks.
    pub ports: Limit,
}

impl Quota {
    /// Anything.
    pub const UNLIMITED: Quota = Quota { networks: Limit::NONE, ports: Limit::NONE };

    /// Refuses `asked` more of `resource` than the tenant may have in this state. Who asks for none is not refused, though it
    /// has more than a limit that was lowered since.
    ///
    /// # Errors
    /// [`OverQuota`].
    pub fn check(&self, model: &Model, tenant: &str, resource: Resource, asked: usize) -> Result<(), OverQuota> {
        let counts = model.counts_of(tenant);
        let (limit, used) = match resource {
            Resource::Network => (self.networks, counts.networks),
            Resource::Port => (self.ports, counts.ports),
        };
        match limit.0 {
            Some(limit) if asked > 0 && used.saturating_add(asked) > limit => {
                Err(OverQuota { resource, limit, used, asked })
            }
            _ => Ok(()),
        }
    }
}

/// What the file says of one tenant; what it does not say is as for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    networks: Option<Limit>,
    ports: Option<Limit>,
}

/// What tenants may have, now.
pub struct Quotas {
    all: Quota,
    of_tenants: Option<Watched<BTreeMap<Text, Own>>>,
}

impl Quotas {
    /// The same for every tenant.
    pub fn for_all(quota: Quota) -> Quotas {
        Quotas { all: quota, of_tenants: None }
    }

    /// The same for every tenant but those that a file names: a table a tenant, in TOML. It is read again when it changes.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(all: Quota, path: &Path) -> Result<Quotas, FileError> {
        Ok(Quotas { all, of_tenants: Some(Watched::open(path, Rights::Any, Box::new(parse))?) })
    }

    /// What this tenant may have.
    pub fn of(&self, tenant: &str) -> Quota {
        let own = self.of_tenants.as_ref().and_then(|file| file.now().get(tenant).copied());
        let Some(own) = own else { return self.all };
        Quota { networks: own.networks.unwrap_or(self.all.networks), ports: own.ports.unwrap_or(self.all.ports) }
    }

    /// The tenants that the file names, in order.
    pub fn named(&self) -> Vec<Text> {
        self.of_tenants.as_ref().map(|file| file.now().keys().cloned().collect()).unwrap_or_default()
    }
}

fn parse(text: &str) -> Result<BTreeMap<Text, Own>, String> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
        format!("line {line}: {}", error.message().replace('\n', " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Plugin as _;
    use crate::plugins::FakePlugin;
    use crate::watched::testing::TestFile;

    const ALL: Quota = Quota { networks: NETWORKS_DEFAULT, ports: PORTS_DEFAULT };

    #[test]
    fn a_tenant_of_the_file_has_its_own_limits_and_for_the_rest_those_of_all() {
        let file = TestFile::new("[acme]\nnetworks = 5\nports = -1\n[\"b.c\"]\nports = 0\n");
        let quotas = Quotas::open(ALL, file.path()).unwrap();
        assert_eq!(quotas.of("acme"), Quota { networks: Limit::at_most(5), ports: Limit::NONE });
        assert_eq!(quotas.of("b.c"), Quota { ports: Limit::at_most(0), ..ALL });
        assert_eq!(quotas.of("other"), ALL);
        assert_eq!(quotas.named(), ["acme".into(), Text::from("b.c")]);
    }

    #[test]
    fn who_asks_for_nothing_is_not_refused_though_it_has_more_than_it_may() {
        let plugin = FakePlugin::new();
        (0..2).for_each(|_| drop(plugin.create_network("acme", None).unwrap()));
        let quota = Quota { networks: Limit::at_most(1), ports: Limit::at_most(0) };
        let check = |resource, asked| quota.check(&plugin.snapshot(), "acme", resource, asked).is_ok();
        assert!(check(Resource::Network, 0) && check(Resource::Port, 0));
        assert!(!check(Resource::Network, 1) && !check(Resource::Port, 1));
    }

    #[test]
    fn a_wrong_file_is_told_with_its_line() {
        for (text, wanted) in [
            ("[acme]\nnetworks = -2", "line 2: -2 is no limit"),
            ("[acme]\nnetwork = 1", "line 2: unknown field `network`"),
            ("[acme]\nports = \"many\"", "line 2: invalid type"),
            ("acme = 1", "line 1: invalid type"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(wanted) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_limit_is_written_as_it_is_read() {
        for number in [-1, 0, 7, i64::MAX] {
            let limit = Limit::try_from(number).unwrap();
            assert_eq!(serde_json::to_value(limit).unwrap(), number);
        }
    }
}
