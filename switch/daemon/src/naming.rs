//! What an operator may call a device, and why one that nobody named has no name (which they get: `api::host`). Pure functions.

use api::host::INTERFACE_NAME_MAX;
use std::fmt;

/// What the interface id of an uplink begins with; its physical network follows.
pub(crate) const UPLINK_PREFIX: &str = "uplink:";

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
