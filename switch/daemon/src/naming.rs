//! What an automatic device is called, and what an operator may call one.
//!
//! An interface id is whatever text a tenant sent. Only here does a part of it become a name of the host, and only by the
//! contract's rule; everything else is refused. Pure functions.

use std::fmt;

/// What the interface id of an uplink begins with; its physical network follows.
pub(crate) const UPLINK_PREFIX: &str = "uplink:";
/// Longest interface name, bytes: the kernel's `IFNAMSIZ` less its NUL.
pub(crate) const INTERFACE_NAME_MAX: usize = 15;
/// Bytes of the id that an automatic name keeps: Nova's and Quantum's custom (`tap` + 11 = 14).
const ID_PREFIX_LEN: usize = 11;

/// Why an attachment that nobody plugged got no device though the settings ask for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoDevice {
    /// The id holds characters that no name may have.
    UnsafeName,
    /// The name belongs to something else.
    NameTaken,
    /// The switch has all the ports it can have.
    TooManyPorts,
}

impl NoDevice {
    /// The word for `reason` in `qvs show ports`.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            NoDevice::UnsafeName => "unsafe-name",
            NoDevice::NameTaken => "name-taken",
            NoDevice::TooManyPorts => "too-many-ports",
        }
    }
}

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// The name of the automatic device of interface `id`: `prefix` and the first 11 bytes of the id, or the whole id if it
/// begins with `gw-` and is short enough.
///
/// # Errors
/// [`NoDevice::UnsafeName`] if these bytes are not plain.
pub(crate) fn automatic_name(prefix: &str, id: &str) -> Result<String, NoDevice> {
    if id.starts_with("gw-") && id.len() <= INTERFACE_NAME_MAX && is_plain(id.as_bytes()) {
        return Ok(id.to_owned());
    }
    let bytes = &id.as_bytes()[..id.len().min(ID_PREFIX_LEN)];
    match std::str::from_utf8(bytes) {
        Ok(text) if is_plain(bytes) => Ok(format!("{prefix}{text}")),
        _ => Err(NoDevice::UnsafeName),
    }
}

/// Whether it matches `[A-Za-z0-9][A-Za-z0-9._-]*`.
fn is_plain(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// Whether an operator may give a TAP or another interface this name: what `dev_valid_name` of Linux takes, without control characters.
///
/// # Errors
/// One line saying why not.
pub(crate) fn check_interface_name(name: &str) -> Result<(), String> {
    let is_valid = (1..=INTERFACE_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        // `%` makes the kernel number the device itself.
        && !name.chars().any(|c| c.is_whitespace() || c.is_control() || "/:%".contains(c));
    if is_valid {
        return Ok(());
    }
    Err(format!("{name:?} is no interface name: 1 to {INTERFACE_NAME_MAX} bytes without space, '/', ':' or '%'"))
}

/// The path of a namespace given by name or path.
///
/// # Errors
/// One line saying why it is neither.
pub(crate) fn netns_path(netns: &str) -> Result<String, String> {
    if netns.starts_with('/') {
        return crate::settings::check_path(netns.as_ref()).map(|()| netns.to_owned());
    }
    let is_name = !netns.is_empty() && netns != "." && netns != ".." && !netns.contains(['/', '\0']);
    if is_name { Ok(format!("/run/netns/{netns}")) } else { Err(format!("{netns:?} is no name of a namespace")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_names_follow_the_contract() {
        for (id, expected) in [
            ("f3a1c2d4-5566-7788-99aa-bbccddeeff00", Ok("tapf3a1c2d4-55")),
            ("vm1", Ok("tapvm1")),
            ("gw-abc", Ok("gw-abc")),
            ("gw-123456789012", Ok("gw-123456789012")),
            ("gw-1234567890123", Ok("tapgw-12345678")),
            ("gw-a b", Err(NoDevice::UnsafeName)),
            ("../../etc", Err(NoDevice::UnsafeName)),
            (".hidden", Err(NoDevice::UnsafeName)),
            ("-rf", Err(NoDevice::UnsafeName)),
            ("a/b", Err(NoDevice::UnsafeName)),
            ("a'b", Err(NoDevice::UnsafeName)),
            ("0123456789é", Err(NoDevice::UnsafeName)),
            ("01234567890é", Ok("tap01234567890")),
            ("", Err(NoDevice::UnsafeName)),
        ] {
            assert_eq!(automatic_name("tap", id), expected.map(str::to_owned), "{id:?}");
        }
    }

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        for name in ["t", "tap-web", "fifteen-bytes-x", "é"] {
            assert!(check_interface_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen-bytes-xx", "a\0b"] {
            assert!(check_interface_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn one_namespace_has_one_text() {
        assert_eq!(netns_path("red").unwrap(), "/run/netns/red");
        assert_eq!(netns_path("/run/netns/red").unwrap(), "/run/netns/red");
        for netns in ["", ".", "..", "a/b", "/run/../x", "/run//x"] {
            assert!(netns_path(netns).is_err(), "{netns:?}");
        }
    }
}
