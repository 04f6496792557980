//! Whose an interface id is. It belongs to whoever operates the host, so with identity on a tenant
//! plugs only what an operator plugged for it: else anybody could take another's interface by guessing its id first.
//!
//! The refusal is the version's AlreadyAttached, the same for an id that nobody plugged as for one of another tenant, and
//! names no port that is not the caller's own.

use crate::model::Text;

/// What stands for a port that is none of the caller's business.
pub const UNKNOWN: &str = "UNKNOWN";

/// What is known of interfaces and ports, whoever's they are. The daemon implements it.
pub trait Registry: Send + Sync {
    /// Whether an operator plugged this interface for this tenant.
    fn is_registered(&self, interface: &str, tenant: &str) -> bool;

    /// The port an interface is attached to.
    fn holder_of(&self, interface: &str) -> Option<Text>;

    /// The tenant of a port.
    fn tenant_of(&self, port: &str) -> Option<Text>;
}

/// Which interface ids a tenant may plug.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Claim {
    /// Any.
    #[default]
    Any,
    /// Those an operator plugged for it.
    Registered,
}
