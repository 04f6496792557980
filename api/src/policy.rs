//! Who may do what: a table of actions and the roles that may take them. Data, in a file; the defaults are compiled in.
//!
//! A rule is looked at after the border has let the caller in, so it speaks of the caller's own tenant, or of any tenant
//! for those whom [`Action::AnyTenant`] names. What a caller may not see does not exist for it: reads that no rule allows
//! are answered as if nothing were there (`guard.rs`).

use crate::identity::Identity;
use crate::watched::{FileError, Rights, Watched};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The defaults: `policy/default.toml`, which is also the file to copy and change.
pub const DEFAULT: &str = include_str!("policy/default.toml");
/// In a rule: everybody whose token is valid.
const EVERYBODY: &str = "*";

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What a rule can be about.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
        pub enum Action {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Action {
            /// Every action.
            pub const ALL: &[Action] = &[$(Action::$variant,)*];

            /// Its name in the file and in logs.
            pub fn name(self) -> &'static str {
                match self {
                    $(Action::$variant => $name,)*
                }
            }
        }
    };
}

actions! {
    /// Use the URLs of every tenant.
    AnyTenant = "any_tenant",
    /// Plug an interface id that no operator plugged for the tenant (`attach.claim = "registered"`).
    PlugUnregistered = "plug_unregistered",
    /// See networks.
    GetNetwork = "get_network",
    /// Make a network.
    CreateNetwork = "create_network",
    /// Rename a network.
    UpdateNetwork = "update_network",
    /// Remove a network.
    DeleteNetwork = "delete_network",
    /// See ports and their attachments.
    GetPort = "get_port",
    /// Make a port.
    CreatePort = "create_port",
    /// Change a port's state.
    UpdatePort = "update_port",
    /// Remove a port.
    DeletePort = "delete_port",
    /// Plug an interface into a port.
    Plug = "plug",
    /// Take out what is plugged into a port.
    Unplug = "unplug",
    /// See port profiles and QoS levels.
    GetProfile = "get_profile",
    /// Make, change, associate and remove them.
    ChangeProfile = "change_profile",
    /// See that there are credentials; nobody sees their passwords.
    GetCredential = "get_credential",
    /// Make, rename and remove them.
    ChangeCredential = "change_credential",
}

/// A policy; every action has a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Roles, in lower case, by action.
    rules: BTreeMap<Action, Vec<String>>,
}

impl Default for Policy {
    fn default() -> Policy {
        let rules = parse_rules(DEFAULT).expect("the compiled-in policy is well-formed: a test parses it");
        Policy { rules }
    }
}

impl Policy {
    /// The policy of a file; actions it does not name have their defaults.
    ///
    /// # Errors
    /// One line with the line's number: an unknown action, or something that is no list of roles.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let mut policy = Policy::default();
        policy.rules.extend(parse_rules(text)?);
        Ok(policy)
    }

    /// Whether somebody may do this. Roles are compared without regard to case, as Keystone does.
    /// What reaches beyond a project is not for those who are confined to it.
    pub fn lets(&self, identity: &Identity, action: Action) -> bool {
        if identity.is_confined && action == Action::AnyTenant {
            return false;
        }
        let allowed = self.rules.get(&action).map(Vec::as_slice).unwrap_or_default();
        allowed
            .iter()
            .any(|role| role == EVERYBODY || identity.roles.iter().any(|held| held.eq_ignore_ascii_case(role)))
    }
}

fn parse_rules(text: &str) -> Result<BTreeMap<Action, Vec<String>>, String> {
    let mut rules: BTreeMap<Action, Vec<String>> = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
        format!("line {line}: {}", error.message().replace('\n', " "))
    })?;
    rules.values_mut().flatten().for_each(|role| role.make_ascii_lowercase());
    Ok(rules)
}

/// The policy in force: as compiled in, or of a file, replaced whole when that changes.
pub enum LivePolicy {
    /// This one.
    Fixed(Arc<Policy>),
    /// That of a file.
    File(Watched<Policy>),
}

impl Default for LivePolicy {
    fn default() -> LivePolicy {
        LivePolicy::Fixed(Arc::default())
    }
}

impl LivePolicy {
    /// The policy of this file.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path) -> Result<LivePolicy, FileError> {
        Ok(LivePolicy::File(Watched::open(path, Rights::Any, Box::new(Policy::parse))?))
    }

    /// The policy now.
    pub fn now(&self) -> Arc<Policy> {
        match self {
            LivePolicy::Fixed(policy) => policy.clone(),
            LivePolicy::File(file) => file.now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody(roles: &[&str]) -> Identity {
        let roles = roles.iter().map(|role| (*role).into()).collect();
        Identity { user: "u".into(), project: Some("p".into()), roles, is_confined: false }
    }

    #[test]
    fn the_compiled_in_policy_has_a_rule_for_every_action() {
        let policy = Policy::default();
        for action in Action::ALL {
            assert!(policy.rules.contains_key(action), "{}", action.name());
        }
    }

    #[test]
    fn by_default_readers_read_members_write_and_only_admin_goes_everywhere() {
        let policy = Policy::default();
        let may = |roles: &[&str], action| policy.lets(&somebody(roles), action);
        assert!(may(&["reader"], Action::GetPort) && !may(&["reader"], Action::CreatePort));
        assert!(may(&["Member"], Action::CreatePort) && may(&["_member_"], Action::DeleteNetwork));
        assert!(!may(&["member"], Action::AnyTenant) && may(&["reader", "ADMIN"], Action::AnyTenant));
        assert!(!may(&["member"], Action::PlugUnregistered) && may(&["service"], Action::PlugUnregistered));
        assert!(!may(&["service"], Action::AnyTenant));
        assert!(may(&[], Action::GetNetwork) && !may(&[], Action::CreateNetwork));
    }

    #[test]
    fn a_file_replaces_the_rules_it_names_and_no_others() {
        let policy = Policy::parse("create_network = [\"Network-Maker\"]\nget_port = []\n").unwrap();
        let may = |roles: &[&str], action| policy.lets(&somebody(roles), action);
        assert!(may(&["network-maker"], Action::CreateNetwork) && !may(&["admin"], Action::CreateNetwork));
        assert!(!may(&["admin"], Action::GetPort));
        assert!(may(&["member"], Action::CreatePort));
    }

    #[test]
    fn a_wrong_file_is_told_with_its_line() {
        for (text, wanted) in [
            ("get_port = [\"*\"]\nget_prot = []", "line 2: unknown variant `get_prot`"),
            ("get_port = \"*\"", "line 1: invalid type"),
            ("get_port = [", "line 1: "),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.starts_with(wanted) && !error.contains('\n'), "{text:?}: {error}");
        }
    }
}
