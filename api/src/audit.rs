//! The audit log: one event for every write that was asked for, whoever asked and however it ended.
//!
//! Events have the target [`TARGET`], so that an operator can send them elsewhere or keep them when the rest is silent.
//! They tell who (user, project and roles by the token, and the peer's address), what (method and path) and the result
//! (status). Bodies and tokens are never in them. Texts of clients are escaped: a line stays a line.

use crate::identity::Identity;
use axum::http::{Method, StatusCode};
use std::net::SocketAddr;

/// The events' target.
pub const TARGET: &str = "audit";

/// Who asked, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who<'a> {
    /// Anybody: there is no identity.
    Anyone,
    /// Somebody without a valid token.
    Unknown,
    /// Somebody.
    Known(&'a Identity),
}

/// Whether requests of this method change something.
pub fn is_write(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Bytes of a path that are told: a stranger's line costs no more than ours.
const PATH_BYTES_MAX: usize = 512;

/// The front of a path, and whether there was more.
fn front(path: &str) -> (&str, bool) {
    let end = path.floor_char_boundary(PATH_BYTES_MAX);
    (&path[..end], end < path.len())
}

/// Tells of one write. Of a long path only the front is told, with `path_cut`.
pub fn tell(who: Who<'_>, peer: Option<SocketAddr>, method: &Method, path: &str, status: StatusCode) {
    let result = match status.as_u16() {
        ..400 => "done",
        400..500 => "refused",
        _ => "failed",
    };
    let peer = peer.map(tracing::field::display);
    let status = status.as_u16();
    let (nobody, who) = match who {
        Who::Known(identity) => (None, Some(identity)),
        Who::Anyone => (Some("anyone"), None),
        Who::Unknown => (Some("unknown"), None),
    };
    let user = nobody.or(who.map(|identity| &*identity.user));
    let project = who.and_then(|identity| identity.project.as_deref());
    let roles = who.map(|identity| tracing::field::debug(&identity.roles));
    let (path, is_cut) = front(path);
    let path_cut = is_cut.then_some(true);
    tracing::info!(target: TARGET, user, project, roles, peer, %method, ?path, path_cut, status, result, "API write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_told_by_its_front_and_no_character_is_cut() {
        assert_eq!(front("/v1.1/networks"), ("/v1.1/networks", false));
        let long = "/".to_owned() + &"\u{e9}".repeat(1000);
        let (told, is_cut) = front(&long);
        assert!(is_cut && long.starts_with(told));
        assert_eq!(told.len(), PATH_BYTES_MAX - 1);
    }
}
