//! The audit log: one event for every write that was asked for, whoever asked and however it ended; of strangers whom nobody
//! can be made to answer for there are some, and then their number.
//!
//! Events have the target [`TARGET`], so that an operator can send them elsewhere or keep them when the rest is silent.
//! They tell who (user, project and roles by the token, and the peer's address; on the host the uid), what (method and path,
//! the ids of what was made, and of what was to be plugged) and the result (status). Bodies and tokens are never in them.
//! Texts of clients are escaped: a line stays a line. What leads to no version of the API changes nothing whatever its
//! method, and is not told.

use crate::identity::Identity;
use crate::model;
use crate::v1::Done;
use axum::http::StatusCode;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

/// The events' target.
pub const TARGET: &str = "audit";

/// Who asked, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who<'a> {
    /// Anybody: there is no identity.
    Anyone,
    /// Somebody without a valid token.
    Unknown,
    /// Somebody with a token that nobody can check now.
    Unverified,
    /// Somebody.
    Known(&'a Identity),
}

/// Whether requests of this method change something.
pub fn is_write(method: &str) -> bool {
    !matches!(method, "GET" | "HEAD" | "OPTIONS")
}

/// Bytes of a client's text that are told: a stranger's line costs no more than ours.
const TEXT_BYTES_MAX: usize = 512;
/// Bytes of a method that are told; HTTP lets it be as long as a head.
const METHOD_BYTES_MAX: usize = 32;
/// Bytes of a path's front that are told: the longest tenant, and the words and ids of objects around it. So nothing that a
/// path may have behind its object, as a suffix of any length, leaves the object out of the line.
const PATH_FRONT_BYTES: usize = model::TEXT_BYTES_MAX + 512;
/// Bytes of a path's end that are told besides.
const PATH_TAIL_BYTES: usize = 128;
/// Stands for what is left out between them; `path_cut` says that it is ours.
const CUT_MARK: &str = "[...]";

/// The front of a text, and whether there was more.
fn front(text: &str, bytes_max: usize) -> (&str, bool) {
    let end = text.floor_char_boundary(bytes_max);
    (&text[..end], end < text.len())
}

/// A path without its middle, and whether it had one.
fn shortened(path: &str) -> (Cow<'_, str>, bool) {
    if path.len() <= PATH_FRONT_BYTES + CUT_MARK.len() + PATH_TAIL_BYTES {
        return (path.into(), false);
    }
    let (front, _) = front(path, PATH_FRONT_BYTES);
    let tail = &path[path.ceil_char_boundary(path.len() - PATH_TAIL_BYTES)..];
    (format!("{front}{CUT_MARK}{tail}").into(), true)
}

/// Tells of one write. The path is told as routes are looked up by, decoded and its slashes folded, so that one object has one
/// text; of a long one front and end are told, with `path_cut`. The method is the one the request was treated as, which
/// `api.strict_essex` takes from elsewhere than the request line. `made` has the ids of all that the write made, and
/// `attachment` what it plugged or was refused to plug.
pub fn tell(who: Who<'_>, peer: Option<SocketAddr>, method: &str, path: &str, status: StatusCode, done: &Done) {
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
        Who::Unverified => (Some("unverified"), None),
    };
    let short = |text| front(text, TEXT_BYTES_MAX).0;
    let user = nobody.or(who.map(|identity| short(&identity.user)));
    let project = who.and_then(|identity| identity.project.as_deref()).map(short);
    let roles = who.map(|identity| tracing::field::debug(&identity.roles));
    let (method, (path, is_cut)) = (front(method, METHOD_BYTES_MAX).0, shortened(path));
    let path_cut = is_cut.then_some(true);
    let made = (!done.made.is_empty()).then(|| done.made.join(" "));
    let attachment = done.attached.as_deref().map(|id| tracing::field::debug(short(id)));
    tracing::info!(
        target: TARGET, user, project, roles, peer, %method, ?path, path_cut, made, attachment, status, result, "API write"
    );
}

/// Tells how many more writes from one place came to nothing in a time than lines tell of, for want of a valid token or of
/// somebody who can check it.
pub(crate) fn tell_of_more(who: Who<'_>, count: u64, from: &str, time: Duration) {
    let s = time.as_secs();
    match who {
        Who::Unverified => {
            tracing::info!(target: TARGET, user = "unverified", result = "failed", "{count} more failed from {from} in {s} s");
        }
        _ => {
            tracing::info!(target: TARGET, user = "unknown", result = "refused", "{count} more refused from {from} in {s} s");
        }
    }
}

/// Tells of a write that was asked for on the host itself, by a socket that knows its peer by the kernel's word. `request` is
/// what was asked, as text, of which the front is told; `refusal` is why it was not done.
pub fn tell_on_host(uid: u32, pid: i32, request: &str, refusal: Option<&str>) {
    let (request, is_cut) = front(request, TEXT_BYTES_MAX);
    let request_cut = is_cut.then_some(true);
    let result = if refusal.is_none() { "done" } else { "refused" };
    let why = refusal.map(|why| front(why, TEXT_BYTES_MAX).0);
    tracing::info!(target: TARGET, uid, pid, request, request_cut, result, why, "admin write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_told_by_its_front_and_no_character_is_cut() {
        assert_eq!(front("/v1.1/networks", 512), ("/v1.1/networks", false));
        let long = "/".to_owned() + &"\u{e9}".repeat(1000);
        let (told, is_cut) = front(&long, 512);
        assert!(is_cut && long.starts_with(told));
        assert_eq!(told.len(), 511);
    }

    #[test]
    fn a_long_path_is_told_by_front_and_end_and_the_object_is_in_it_whatever_is_around() {
        let object =
            "/networks/3c5c1d0e-0000-4000-8000-0123456789ab/ports/9d0f1b2a-0000-4000-8000-0123456789ab/attachment";
        let tenant = "t".repeat(model::TEXT_BYTES_MAX);
        let path = format!("/v1.1/extensions/csco/tenants/{tenant}{object}");
        assert_eq!(shortened(&path), (path.as_str().into(), false));
        let long = format!("{path}.{}end", "\u{e9}".repeat(5000));
        let (told, is_cut) = shortened(&long);
        assert!(is_cut && told.starts_with(&format!("{path}.")) && told.ends_with("end"), "{told}");
        assert!(told.contains(CUT_MARK) && told.len() <= PATH_FRONT_BYTES + CUT_MARK.len() + PATH_TAIL_BYTES, "{told}");
    }
}
